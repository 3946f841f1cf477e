// Runs the networks beside the page, so that it stays responsive.

import { Detector, Network } from "./network.mjs";
import { cut } from "./windows.mjs";

const networks = new Map();
let detector;

const calls = {
  async load({ model }) {
    networks.set(model.variant, await Network.load(model));
  },
  async detector({ settings }) {
    detector = await Detector.load(settings);
  },
  async speech({ samples, windows }) {
    const found = [];
    for (const window of cut(samples, windows)) found.push(await detector.holdsSpeech(window.samples));
    return found;
  },
  explain: ({ variant, samples, speech, target }) => networks.get(variant).explain(samples, speech, target),
};

addEventListener("message", async ({ data: { id, call, ...parameters } }) => {
  try {
    postMessage({ id, result: await calls[call](parameters) });
  } catch (error) {
    postMessage({ id, error: String(error?.message ?? error) });
  }
});
