// The bundles' graphs in ONNX Runtime: the answer and the maps of a variant, by the rules of the server.

import { cut, join, resize } from "./windows.mjs";

/** A loaded variant. */
export class Network {
  /** Load the graph of `model`, an entry of models.json, into an engine of engine.mjs. */
  static async load(model, { ort, providers }) {
    const options = { executionProviders: providers };
    return new Network(model, ort, await ort.InferenceSession.create(new URL(model.graph, import.meta.url).href, options));
  }

  constructor(model, ort, session) {
    this.model = model;
    this.ort = ort;
    this.session = session;
  }

  /**
   * Return the answer for samples at 16 kHz, and the maps of one speaker's score.
   *
   * `speech` says of each window whether it holds speech; `target` is a speaker's index, or -1 for the best.
   */
  async explain(samples, speech, target = -1) {
    const { model } = this;
    const windows = cut(samples, model.windows);
    const counts = windows.map(({ weight }, index) => (speech[index] || !speech.some(Boolean) ? weight : 0));
    const outputs = [];
    for (const { samples: piece } of windows) outputs.push(await this.#run(piece, target));
    const voting = outputs.filter((_, index) => counts[index]);
    const weights = counts.filter(Boolean);
    const logits = mean(voting.map((each) => each.logits), weights);
    const best = largest(logits);
    const explained = target < 0 ? best : target;
    for (const [index, output] of outputs.entries()) {
      if (output.explained !== explained) outputs[index] = await this.#run(windows[index].samples, explained);
    }
    const embedding = voting.length === 1 ? voting[0].embedding : direction(voting.map((each) => each.embedding), weights);
    const probabilities = softmax(logits, model.temperature);
    return {
      variant: model.variant,
      logits,
      probabilities,
      embedding,
      best,
      explained,
      known: this.#score(logits, embedding, best) >= model.threshold,
      order: [...logits.keys()].sort((one, other) => logits[other] - logits[one]),
      ...this.#joined(samples.length, windows, outputs, counts),
    };
  }

  async #run(samples, target) {
    const { ort } = this;
    const audio = new ort.Tensor("float32", Float32Array.from(samples), [1, samples.length]);
    const whole = (value) => new ort.Tensor("int64", BigInt64Array.from([BigInt(value)]), [1]);
    const found = await this.session.run({ audio, lengths: whole(samples.length), target: whole(target) });
    const plane = (name) => ({ values: found[name].data, columns: found[name].dims[2] });
    return {
      logits: Array.from(found.logits.data),
      embedding: Array.from(found.embedding.data),
      explained: Number(found.explained.data[0]),
      features: plane("features"),
      maps: this.model.stages.map((stage) => plane(`saliency_${stage.name}`)),
    };
  }

  /** Return the features and the maps of the whole on the grid of the features, [mel x frames]. */
  #joined(length, windows, outputs, counts) {
    const { model } = this;
    const rows = model.mel_centres_hz.length;
    const frames = 1 + Math.floor((length - model.frame_length) / model.frame_shift);
    const single = outputs.length === 1;
    const place = (plane, index, step, scale) => ({
      ...plane,
      first: Math.floor(windows[index].start / step),
      scale,
    });
    const features = single
      ? outputs[0].features.values
      : join(frames, outputs.map((each, index) => place(each.features, index, model.frame_shift, 1)));
    const maps = {};
    model.stages.forEach((stage, number) => {
      const columns = single ? outputs[0].maps[number].columns : Math.ceil(frames / stage.stride);
      const step = model.frame_shift * stage.stride;
      const raw = single
        ? outputs[0].maps[number].values
        : join(columns, outputs.map((each, index) => place(each.maps[number], index, step, counts[index])));
      const peak = raw.reduce((most, value) => Math.max(most, value), Number.MIN_VALUE);
      maps[stage.name] = resize(raw.map((value) => value / peak), stage.rows, columns, rows, frames);
    });
    const chosen = model.fused_stages.map((name) => maps[name]);
    maps.fused = chosen[0].map((_, bin) => chosen.reduce((sum, map) => sum + map[bin], 0) / chosen.length);
    return { features, maps, rows, frames };
  }

  /** Return what the threshold is on, for one speaker: the logit, or with it a log-likelihood ratio. */
  #score(logits, embedding, speaker) {
    const { scorer, score_scale: scale } = this.model;
    if (!scorer) return logits[speaker] / scale;
    const norm = Math.hypot(...embedding);
    const centred = embedding.map((value, index) => value / norm - scorer.mean[index]);
    const x = scorer.quadratic.map((_, column) =>
      centred.reduce((sum, value, row) => sum + value * scorer.transform[row][column], 0),
    );
    const ratio = x.reduce(
      (sum, value, index) => sum + value * value * scorer.quadratic[index] + value * scorer.linear[speaker][index],
      scorer.constant[speaker],
    );
    return logits[speaker] + ratio;
  }
}

/** The server's speech detector. */
export class Detector {
  /** Load the detector that models.json names; it runs on the processor, as its hundreds of steps are tiny. */
  static async load(settings, { ort }) {
    const options = { executionProviders: ["wasm"] };
    return new Detector(settings, ort, await ort.InferenceSession.create(new URL(settings.graph, import.meta.url).href, options));
  }

  constructor(settings, ort, session) {
    this.settings = settings;
    this.ort = ort;
    this.session = session;
  }

  /** Return whether samples at 16 kHz hold speech. */
  async holdsSpeech(samples) {
    const { ort } = this;
    const { frame: size, context, probability, peak, state: shape } = this.settings;
    const { least_peak: leastPeak, least_frames: leastFrames } = this.settings;
    const loudest = samples.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    if (loudest < leastPeak) return false;
    const padded = new Float32Array(context + Math.ceil(samples.length / size) * size);
    samples.forEach((value, index) => (padded[context + index] = (value * peak) / loudest));
    let state = new ort.Tensor("float32", new Float32Array(shape.reduce((one, other) => one * other)), shape);
    const sr = new ort.Tensor("int64", BigInt64Array.from([16_000n]), []);
    let found = 0;
    for (let start = 0; start + context + size <= padded.length; start += size) {
      const frame = padded.slice(start, start + context + size);
      const input = new ort.Tensor("float32", frame, [1, context + size]);
      const outputs = await this.session.run({ input, state, sr });
      const [value, next] = this.session.outputNames.map((name) => outputs[name]);
      state = next;
      found += value.data[0] > probability;
      if (found >= leastFrames) return true;
    }
    return false;
  }
}

function mean(rows, weights) {
  if (rows.length === 1) return rows[0];
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return rows[0].map((_, index) => rows.reduce((sum, row, place) => sum + weights[place] * row[index], 0) / total);
}

/** Return the mean of the embeddings' directions, times their mean length. */
function direction(embeddings, weights) {
  const norms = embeddings.map((values) => Math.hypot(...values));
  const units = embeddings.map((values, index) => values.map((value) => value / norms[index]));
  const [size] = mean(norms.map((norm) => [norm]), weights);
  return mean(units, weights).map((value) => value * size);
}

function largest(values) {
  return values.reduce((best, value, index) => (value > values[best] ? index : best), 0);
}

function softmax(logits, temperature) {
  const highest = Math.max(...logits);
  const powers = logits.map((value) => Math.exp((value - highest) / temperature));
  const sum = powers.reduce((one, other) => one + other, 0);
  return powers.map((power) => power / sum);
}
