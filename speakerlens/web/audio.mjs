// Sound: reading and recording, interference, and what a map keeps of a recording.

import { RATE } from "./windows.mjs";

const SIZE = 512;
const SHIFT = 128;

/** Return the content of an audio file as samples at 16 kHz, channels averaged. */
export async function decode(content) {
  const decoded = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(content);
  const samples = new Float32Array(decoded.length);
  for (let channel = 0; channel < decoded.numberOfChannels; channel++) {
    even(decoded.getChannelData(channel)).forEach((value, index) => (samples[index] += value / decoded.numberOfChannels));
  }
  return samples;
}

/**
 * Return samples with one scale for both signs.
 *
 * Chromium divides integer samples above zero by one less than those below: 16 bits by 32,767 and 32,768. Such samples
 * are recognised by their values, as only those are all multiples of both.
 */
export function even(samples) {
  const multiple = (value, full) => Math.abs(value * full - Math.round(value * full)) <= 1e-6 * Math.abs(value * full);
  const full = [127, 32_767].find((each) => samples.every((value) => multiple(value, value > 0 ? each : each + 1)));
  return full ? samples.map((value) => (value > 0 ? Math.round(value * full) / (full + 1) : value)) : samples;
}

/** Record the microphone, and pass each block on; return a function that stops it and returns the samples at 16 kHz. */
export async function record(pass = () => {}) {
  const stream = await navigator.mediaDevices.getUserMedia({
    audio: { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false },
  });
  const context = new AudioContext({ sampleRate: RATE });
  await context.audioWorklet.addModule(new URL("./recorder.mjs", import.meta.url));
  const node = new AudioWorkletNode(context, "recorder");
  const blocks = [];
  node.port.onmessage = ({ data }) => {
    blocks.push(data);
    pass(data);
  };
  context.createMediaStreamSource(stream).connect(node);
  return async () => {
    stream.getTracks().forEach((track) => track.stop());
    await context.close();
    const samples = new Float32Array(blocks.reduce((sum, block) => sum + block.length, 0));
    blocks.reduce((at, block) => (samples.set(block, at), at + block.length), 0);
    return samples;
  };
}

/** Made interference, by name: each returns `length` samples. Random ones are the same every time. */
export const MADE = {
  "white noise": (length) => noise(length),
  rumble: (length) => {
    let low = 0;
    return noise(length).map((value) => (low = 0.98 * low + 0.02 * value));
  },
  "mains hum": (length) => tones(length, (time) => [1, 3, 5, 7, 9].reduce((sum, order) => sum + Math.sin(2 * Math.PI * 50 * order * time) / order, 0)),
  siren: (length) => {
    let phase = 0;
    return tones(length, (time) => {
      phase += (2 * Math.PI * (900 + 450 * Math.sin(2 * Math.PI * 0.5 * time))) / RATE;
      return Math.sin(phase);
    });
  },
  clicks: (length) => noise(length).map((value, index) => (index % 2000 < 40 ? value : 0)),
};

/** Return speech with interference, repeated or cut to its length, at a signal-to-noise ratio in decibels, unclipped. */
export function mix(speech, interference, snr) {
  const power = (samples) => samples.reduce((sum, value) => sum + value * value, 0) / samples.length;
  const repeated = speech.map((_, index) => interference[index % interference.length]);
  const noise = power(repeated);
  const gain = noise > 0 ? Math.sqrt(power(speech) / (noise * 10 ** (snr / 10))) : 0;
  const mixed = speech.map((value, index) => value + gain * repeated[index]);
  const peak = mixed.reduce((most, value) => Math.max(most, Math.abs(value)), 1);
  return mixed.map((value) => value / peak);
}

/**
 * Return the part of samples that a map keeps: their short-time spectrum times the map, in the original phase.
 *
 * The map is [centres x frames] in [0, 1]; between mel centres and frames it is interpolated.
 */
export function masked(samples, map, frames, { mel_centres_hz: centres, frame_length: frameLength, frame_shift: frameShift }) {
  const window = Float32Array.from({ length: SIZE }, (_, index) => 0.5 - 0.5 * Math.cos((2 * Math.PI * index) / SIZE));
  const padded = new Float32Array(samples.length + 2 * SIZE);
  padded.set(samples, SIZE);
  const [total, weights] = [new Float32Array(padded.length), new Float32Array(padded.length)];
  const bins = Array.from({ length: SIZE / 2 + 1 }, (_, bin) => between(centres, (bin * RATE) / SIZE));
  const [real, imaginary] = [new Float32Array(SIZE), new Float32Array(SIZE)];
  for (let start = 0; start + SIZE <= padded.length; start += SHIFT) {
    for (let index = 0; index < SIZE; index++) real[index] = padded[start + index] * window[index];
    imaginary.fill(0);
    transform(real, imaginary, false);
    const centre = start + SIZE / 2 - SIZE;
    const frame = Math.min(frames - 1, Math.max(0, Math.round((centre - frameLength / 2) / frameShift)));
    bins.forEach(([low, high, share], bin) => {
      const gain = map[low * frames + frame] * (1 - share) + map[high * frames + frame] * share;
      for (const place of bin && bin < SIZE / 2 ? [bin, SIZE - bin] : [bin]) {
        real[place] *= gain;
        imaginary[place] *= gain;
      }
    });
    transform(real, imaginary, true);
    for (let index = 0; index < SIZE; index++) {
      total[start + index] += real[index] * window[index];
      weights[start + index] += window[index] ** 2;
    }
  }
  return samples.map((_, index) => total[SIZE + index] / (weights[SIZE + index] || 1));
}

/** Return samples at 16 kHz as a WAV file, of 16 bits or, exactly, of 32-bit floats. */
export function wav(samples, exact = false) {
  const width = exact ? 4 : 2;
  const bytes = new DataView(new ArrayBuffer(44 + width * samples.length));
  const text = (place, value) => [...value].forEach((each, index) => bytes.setUint8(place + index, each.charCodeAt(0)));
  text(0, "RIFF");
  bytes.setUint32(4, 36 + width * samples.length, true);
  text(8, "WAVEfmt ");
  bytes.setUint32(16, 16, true);
  bytes.setUint16(20, exact ? 3 : 1, true);
  bytes.setUint16(22, 1, true);
  bytes.setUint32(24, RATE, true);
  bytes.setUint32(28, width * RATE, true);
  bytes.setUint16(32, width, true);
  bytes.setUint16(34, 8 * width, true);
  text(36, "data");
  bytes.setUint32(40, width * samples.length, true);
  samples.forEach((value, index) => {
    if (exact) bytes.setFloat32(44 + 4 * index, value, true);
    else bytes.setInt16(44 + 2 * index, Math.round(32_767 * Math.max(-1, Math.min(1, value))), true);
  });
  return new Blob([bytes.buffer], { type: "audio/wav" });
}

function noise(length) {
  let state = 1;
  return Float32Array.from({ length }, () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 31 - 1;
  });
}

function tones(length, value) {
  return Float32Array.from({ length }, (_, index) => value(index / RATE));
}

function between(centres, hertz) {
  const high = centres.findIndex((centre) => centre >= hertz);
  if (high <= 0) return high ? [centres.length - 1, centres.length - 1, 0] : [0, 0, 0];
  return [high - 1, high, (hertz - centres[high - 1]) / (centres[high] - centres[high - 1])];
}

/** Fast Fourier transform in place (radix 2, Cooley and Tukey 1965); the inverse is divided by the size. */
function transform(real, imaginary, inverse) {
  const size = real.length;
  for (let index = 1, other = 0; index < size; index++) {
    let bit = size >> 1;
    for (; other & bit; bit >>= 1) other ^= bit;
    other ^= bit;
    if (index < other) {
      [real[index], real[other]] = [real[other], real[index]];
      [imaginary[index], imaginary[other]] = [imaginary[other], imaginary[index]];
    }
  }
  for (let length = 2; length <= size; length *= 2) {
    const angle = ((inverse ? 2 : -2) * Math.PI) / length;
    for (let start = 0; start < size; start += length) {
      for (let index = 0; index < length / 2; index++) {
        const [cosine, sine] = [Math.cos(angle * index), Math.sin(angle * index)];
        const [one, other] = [start + index, start + index + length / 2];
        const re = real[other] * cosine - imaginary[other] * sine;
        const im = real[other] * sine + imaginary[other] * cosine;
        [real[other], imaginary[other]] = [real[one] - re, imaginary[one] - im];
        [real[one], imaginary[one]] = [real[one] + re, imaginary[one] + im];
      }
    }
  }
  if (inverse) {
    for (let index = 0; index < size; index++) {
      real[index] /= size;
      imaginary[index] /= size;
    }
  }
}
