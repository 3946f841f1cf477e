// Runs the networks beside the page, so that it stays responsive.

import { start } from "./engine.mjs";
import { Detector, Network } from "./network.mjs";
import { cut } from "./windows.mjs";

let settings;
let engine;
let networks;
let detector;

async function load() {
  networks = new Map();
  detector = await Detector.load(settings.detector, engine);
}

/** Return a variant's network; each is loaded when it is first asked, so that the first answer does not wait for all. */
async function network(variant) {
  if (!networks.has(variant)) {
    const model = settings.models.find((each) => each.variant === variant);
    networks.set(variant, await Network.load(model, engine));
  }
  return networks.get(variant);
}

/** Go on in WebAssembly after an error of WebGPU, which a driver may refuse or take away. */
async function fallBack(error) {
  if (engine.name !== "WebGPU") throw error;
  console.warn(`WebGPU failed: ${error?.message ?? error}`);
  engine = await start("WebAssembly");
  await load();
}

const calls = {
  async load(wanted) {
    settings = wanted.settings;
    engine = await start(wanted.engine);
    await load().catch(fallBack);
  },
  async speech({ samples, windows }) {
    const found = [];
    for (const window of cut(samples, windows)) found.push(await detector.holdsSpeech(window.samples));
    return found;
  },
  explain({ variant, samples, speech, target }) {
    const explained = async () => (await network(variant)).explain(samples, speech, target);
    return explained().catch((error) => fallBack(error).then(explained));
  },
};

async function answer({ id, call, ...parameters }) {
  try {
    const result = await calls[call](parameters);
    postMessage({ id, result, engine: engine.name });
  } catch (error) {
    postMessage({ id, error: String(error?.message ?? error) });
  }
}

// One after the other: a session runs once at a time.
let last = Promise.resolve();
addEventListener("message", ({ data }) => (last = last.then(() => answer(data))));
