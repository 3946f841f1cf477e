// The models at a server: it answers over HTTP, and live audio goes over a WebSocket.

import { wav } from "./audio.mjs";
import { RATE } from "./windows.mjs";

const STAGES = { s1: "STAGE_S1", s2: "STAGE_S2", s3: "STAGE_S3", s4: "STAGE_S4", fused: "STAGE_FUSED" };
const NAMES = Object.fromEntries(Object.entries(STAGES).map(([name, stage]) => [stage, name]));
const LIVE_SAMPLES = RATE / 10;
const KEY = "speakerlens-token";

/** Keep a token until the tab is closed. */
export function signIn(token) {
  sessionStorage.setItem(KEY, token);
}

/** Fetch from the server; an error of it becomes an Error with its text and `status`. */
export async function fetched(address, options = {}) {
  const token = sessionStorage.getItem(KEY);
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const response = await fetch(address, { ...options, headers });
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({ detail: response.statusText }));
  throw Object.assign(new Error(problem.detail), { status: response.status });
}

/** Return what answers. */
export async function connect(settings) {
  const models = new Map(settings.models.map((model) => [model.variant, model]));
  const asked = (stages, target) => ({
    models: settings.models.map(({ variant, version }) => ({ variant, version })),
    explain: { stages, encoding: "ENCODING_UINT8", ...(target === null ? {} : { target_speaker: target }) },
  });
  return {
    /** Yield [variant, answer] for each model; `target` is a speaker's name, or null for the best. */
    async *answers(samples, target) {
      const form = new FormData();
      form.append("audio", wav(samples, true), "recording.wav");
      form.append("request", JSON.stringify(asked(Object.values(STAGES), target)));
      const { answers } = await (await fetched("v1/identify", { method: "POST", body: form })).json();
      for (const answer of answers) {
        if (answer.failure) throw new Error(`${answer.variant}: ${answer.failure.message}`);
        yield [answer.variant, readable(answer, models.get(answer.variant))];
      }
    },
    /** Begin a stream; `show` gets [variant, answer] pairs of each window. Returns {send, end}. */
    live(show, failed) {
      const address = new URL("v1/identify/live", location.href.split("#")[0]);
      address.protocol = address.protocol.replace("http", "ws");
      const token = sessionStorage.getItem(KEY);
      const encoded = token && btoa(token).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
      const socket = new WebSocket(address, encoded ? ["speakerlens", `bearer.${encoded}`] : ["speakerlens"]);
      const start = { format: "SAMPLE_FORMAT_FLOAT32", sample_rate: RATE, ...asked([STAGES.fused], null) };
      const blocks = [];
      let count = 0;
      let finished = false;
      const flush = () => {
        if (socket.readyState !== WebSocket.OPEN) return;
        for (const block of blocks.splice(0)) socket.send(block);
        count = 0;
        if (finished) socket.send('{"end": true}');
      };
      socket.addEventListener("open", () => {
        socket.send(JSON.stringify({ start }));
        flush();
      });
      socket.addEventListener("message", ({ data }) => {
        const { window, error } = JSON.parse(data);
        if (error) failed(new Error(error.detail));
        if (window?.answers.length) show(window.answers.map((each) => [each.variant, readable(each, models.get(each.variant))]));
      });
      socket.addEventListener("error", () => failed(new Error("the connection to the server failed")));
      return {
        send(block) {
          blocks.push(block);
          count += block.length;
          if (count >= LIVE_SAMPLES) flush();
        },
        end() {
          finished = true;
          flush();
        },
      };
    },
  };
}

/** Return a server's answer as the page has those of its own models. */
function readable({ speakers, known, explanation }, model) {
  const labels = speakers.map((each) => model.speakers.indexOf(each.speaker));
  const probabilities = {};
  speakers.forEach((each, index) => (probabilities[labels[index]] = each.probability));
  const { log_mel: features, saliency } = explanation;
  return {
    variant: model.variant,
    probabilities,
    best: labels[0],
    explained: model.speakers.indexOf(explanation.target_speaker),
    known,
    order: labels,
    features: values(features),
    maps: Object.fromEntries(saliency.map((plane) => [NAMES[plane.stage], values(plane)])),
    rows: features.rows,
    frames: features.columns,
  };
}

function values({ values: text, scale, offset }) {
  return Float32Array.from(atob(text), (character) => character.charCodeAt(0) * scale + offset);
}
