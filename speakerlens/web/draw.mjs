// The picture of an answer: the map in one hue over the grey log-mel, with axes in hertz and seconds.

import { RATE } from "./windows.mjs";

const [LEFT, BOTTOM, TOP] = [50, 30, 6];
const MOST_OPAQUE = 0.92;
const TICKS_HZ = [250, 500, 1000, 2000, 4000, 8000];

/** Draw an answer in the colours of `theme`; `position` is where the playhead stands, in seconds, or null. */
export function draw(canvas, answer, map, model, theme, position) {
  const ratio = devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  [canvas.width, canvas.height] = [width * ratio, height * ratio];
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  const [across, down] = [width - LEFT - 4, height - BOTTOM - TOP];
  context.imageSmoothingEnabled = false;
  context.drawImage(picture(answer, map, theme), LEFT, TOP, across, down);
  const style = getComputedStyle(canvas);
  context.fillStyle = context.strokeStyle = style.color;
  context.font = `12px ${style.fontFamily}`;
  const mel = (hertz) => 1127 * Math.log1p(hertz / 700);
  const [low, high] = [mel(model.mel_centres_hz[0]), mel(model.mel_centres_hz.at(-1))];
  context.textAlign = "right";
  for (const hertz of TICKS_HZ.filter((each) => mel(each) <= high + 20)) {
    const y = TOP + down * (1 - (Math.min(mel(hertz), high) - low) / (high - low));
    context.fillText(hertz < 1000 ? `${hertz} Hz` : `${hertz / 1000} kHz`, LEFT - 4, Math.max(TOP + 9, y + 4));
  }
  context.textAlign = "center";
  const seconds = (answer.frames * model.frame_shift) / RATE;
  const step = [0.25, 0.5, 1, 2, 5, 10].find((each) => (across / seconds) * each > 45) ?? 20;
  for (let time = 0; time <= seconds; time += step) {
    context.fillText(`${+time.toFixed(2)} s`, Math.min(LEFT + (across * time) / seconds, width - 16), height - BOTTOM + 16);
  }
  if (position !== null) {
    const x = LEFT + across * Math.min(1, position / seconds);
    context.fillRect(x - 1, TOP, 2, down);
  }
}

function picture(answer, map, theme) {
  const { rows, frames, features } = answer;
  const sorted = Float32Array.from(features).sort();
  const quantile = (share) => sorted[Math.round(share * (sorted.length - 1))];
  const [quiet, loud] = [quantile(0.01), quantile(0.998)];
  const colours = Object.fromEntries(Object.entries(theme).map(([name, text]) => [name, channels(text)]));
  const peak = map.reduce((most, value) => Math.max(most, value), Number.MIN_VALUE);
  const image = new ImageData(frames, rows);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < frames; column++) {
      const level = Math.max(0, Math.min(1, (features[row * frames + column] - quiet) / (loud - quiet || 1)));
      const opacity = Math.max(0, (MOST_OPAQUE * map[row * frames + column]) / peak);
      const place = 4 * ((rows - 1 - row) * frames + column);
      for (let channel = 0; channel < 3; channel++) {
        const ground = colours.quiet[channel] * (1 - level) + colours.loud[channel] * level;
        image.data[place + channel] = ground * (1 - opacity) + colours.saliency[channel] * opacity;
      }
      image.data[place + 3] = 255;
    }
  }
  const drawn = new OffscreenCanvas(frames, rows);
  drawn.getContext("2d").putImageData(image, 0, 0);
  return drawn;
}

function channels(colour) {
  return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
}
