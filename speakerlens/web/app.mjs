// The page: chooses a recording and interference, asks every variant, and shows and plays the answers.

import { decode, MADE, masked, mix, record, wav } from "./audio.mjs";
import { draw } from "./draw.mjs";
import { fetched, signIn } from "./remote.mjs";
import { RATE } from "./windows.mjs";

const MOST_SECONDS = 30;
const SHOWN_SPEAKERS = 3;
const BEST = "the best speaker";
const part = (id) => document.getElementById(id);
const dark = matchMedia("(prefers-color-scheme: dark)");
const controls = ["example", "interference", "snr", "stage", "target"];

const cards = new Map();
const sounds = new Map();
let settings;
let models;
let speech = null;
let mixture = null;
let own = null;
let ownInterference = null;
let asked = 0;
let playing = null;
let recording = null;

function say(text) {
  part("status").textContent = text;
}

function fill(id, values) {
  part(id).replaceChildren(...values.map((value) => new Option(value, value)));
}

function setUp() {
  fill("example", settings.examples.map((each) => each.name));
  const others = settings.examples.map((each) => `voice: ${each.name}`);
  fill("interference", ["none", ...Object.keys(MADE), ...others, "a file"]);
  fill("stage", ["fused", ...settings.models[0].stages.map((stage) => stage.name)]);
  fill("target", [BEST, ...settings.models[0].speakers]);
  for (const model of settings.models) {
    const card = part("answer").content.firstElementChild.cloneNode(true);
    card.style.setProperty("--variant", model.colour);
    card.querySelector("h2").textContent = `${model.variant}@${model.version}`;
    card.querySelector("canvas").setAttribute("role", "img");
    card.querySelector("dl").replaceChildren(
      ...Object.entries(model.card).flatMap(([term, text]) => {
        const [name, value] = [document.createElement("dt"), document.createElement("dd")];
        [name.textContent, value.textContent] = [term, text];
        return [name, value];
      }),
    );
    card.addEventListener("click", ({ target }) => target.dataset.play && play(model.variant, target.dataset.play));
    part("answers").append(card);
    cards.set(model.variant, { card, model, answer: null });
  }
}

/** Read the state of the controls from the link; what it does not name stays. */
function restore() {
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
    if (!controls.includes(name)) continue;
    const control = part(name);
    if (control.tagName !== "SELECT" || [...control.options].some((each) => each.value === value)) control.value = value;
  }
}

function link() {
  const state = new URLSearchParams(controls.map((name) => [name, part(name).value]));
  return `${location.href.split("#")[0]}#${state}`;
}

async function example(name) {
  if (!sounds.has(name)) {
    const { file } = settings.examples.find((each) => each.name === name);
    sounds.set(name, await decode(await (await fetched(file)).arrayBuffer()));
  }
  return sounds.get(name);
}

async function interference(length) {
  const kind = part("interference").value;
  if (kind === "none") return null;
  if (kind === "a file") return ownInterference;
  if (kind.startsWith("voice: ")) return example(kind.slice("voice: ".length));
  return MADE[kind](length);
}

/** Ask every variant about the recording as the controls say. */
async function ask() {
  const number = ++asked;
  stop();
  part("snr-value").textContent = `${part("snr").value} dB`;
  part("other").hidden = part("interference").value !== "a file";
  part("snr").disabled = part("interference").value === "none";
  try {
    speech = own?.samples ?? (await example(part("example").value));
    const seconds = speech.length / RATE;
    part("source").textContent = `${own?.name ?? part("example").value}, ${seconds.toFixed(2)} s`;
    if (seconds > MOST_SECONDS) throw new Error(`${seconds.toFixed(0)} s long; at most ${MOST_SECONDS} s are explained here`);
    if (speech.length < settings.min_samples) {
      throw new Error(`${seconds.toFixed(2)} s long; at least ${(settings.min_samples / RATE).toFixed(2)} s are needed`);
    }
    const added = await interference(speech.length);
    mixture = added ? mix(speech, added, Number(part("snr").value)) : speech;
    part("player").src = URL.createObjectURL(wav(mixture));
    say("Asking the models …");
    const target = part("target").value === BEST ? null : part("target").value;
    for await (const [variant, answer] of models.answers(mixture, target)) {
      if (number !== asked) return;
      show(cards.get(variant), answer);
    }
    tell();
  } catch (error) {
    if (number === asked) say(`This recording cannot be answered: ${error.message}`);
  }
}

function tell() {
  sayWhere();
  const answered = [...cards.values()].filter(({ answer }) => answer);
  say(answered.map(({ model, answer }) => `${model.variant}: ${verdict(model, answer)}`).join("; "));
}

function verdict(model, answer) {
  const share = `${(100 * answer.probabilities[answer.best]).toFixed(1)} %`;
  return `${model.speakers[answer.best]}, ${share}, ${answer.known ? "known" : "unknown"}`;
}

function show(each, answer) {
  each.answer = answer;
  const { card, model } = each;
  card.querySelector(".verdict").textContent = verdict(model, answer);
  card.querySelector(".scores").replaceChildren(
    ...answer.order.slice(0, SHOWN_SPEAKERS).map((label) => {
      const line = document.createElement("li");
      line.textContent = `${model.speakers[label]} ${(100 * answer.probabilities[label]).toFixed(1)} %`;
      return line;
    }),
  );
  const why = `${stageOf(answer)} map: why ${model.speakers[answer.explained]}?`;
  card.querySelector("canvas").setAttribute("aria-label", `${why} ${verdict(model, answer)}`);
  card.querySelector(".why").textContent = why;
  redraw(each, null);
}

function redraw({ card, model, answer }, position) {
  const theme = settings.themes[dark.matches ? "dark" : "light"];
  if (answer) draw(card.querySelector("canvas"), answer, answer.maps[stageOf(answer)], model, theme, position);
}

/** Return the stage to show: live answers have the fused map only. */
function stageOf(answer) {
  return part("stage").value in answer.maps ? part("stage").value : "fused";
}

function stop() {
  if (!playing) return;
  playing.sound.pause();
  playing.button.setAttribute("aria-pressed", "false");
  redraw(playing.each, null);
  playing = null;
}

/** Play the recording, or what the map of a variant kept or removed, with a playhead. */
function play(variant, what) {
  const each = cards.get(variant);
  const button = each.card.querySelector(`[data-play="${what}"]`);
  const again = playing?.button === button;
  stop();
  if (again || !each.answer) return;
  const sound = new Audio(URL.createObjectURL(wav(heard(each, what))));
  playing = { each, button, sound };
  button.setAttribute("aria-pressed", "true");
  sound.addEventListener("ended", stop);
  sound.play().catch((error) => {
    say(`The sound cannot be played: ${error.message}`);
    stop();
  });
  const follow = () => {
    if (playing?.sound !== sound) return;
    redraw(each, sound.currentTime);
    requestAnimationFrame(follow);
  };
  follow();
}

function heard({ model, answer }, what) {
  if (what === "all") return mixture;
  const kept = masked(mixture, answer.maps[stageOf(answer)], answer.frames, model);
  return what === "kept" ? kept : mixture.map((value, index) => value - kept[index]);
}

async function open(file) {
  own = { name: file.name, samples: await decode(await file.arrayBuffer()) };
  await ask();
}

function failed(error) {
  say(`This file cannot be read: ${error.message || "the browser does not know its format"}`);
}

/** Begin or end a recording; models at a server answer while it lasts. */
async function toggleRecording() {
  if (recording) {
    const { finish, live } = recording;
    recording = null;
    part("record").textContent = "Record";
    own = { name: "your recording", samples: await finish() };
    live?.end();
    await ask();
    return;
  }
  asked++;
  stop();
  const live = models.live?.(
    (pairs) => {
      if (!recording) return;
      for (const [variant, answer] of pairs) show(cards.get(variant), answer);
      tell();
    },
    (error) => recording && say(`The server ended the live answers: ${error.message}`),
  );
  recording = { live, finish: await record((block) => live?.send(block)) };
  part("record").textContent = "Stop recording";
  say("Recording: speak for a few seconds.");
}

function listen() {
  for (const name of ["interference", "snr", "target"]) part(name).addEventListener("change", ask);
  part("snr").addEventListener("input", () => (part("snr-value").textContent = `${part("snr").value} dB`));
  part("example").addEventListener("change", () => {
    own = null;
    part("file").value = "";
    ask();
  });
  part("stage").addEventListener("change", () => cards.forEach((each) => each.answer && show(each, each.answer)));
  part("file").addEventListener("change", ({ target }) => target.files[0] && open(target.files[0]).catch(failed));
  part("interference-file").addEventListener("change", async ({ target }) => {
    try {
      ownInterference = await decode(await target.files[0].arrayBuffer());
      await ask();
    } catch (error) {
      failed(error);
    }
  });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files[0]) open(event.dataTransfer.files[0]).catch(failed);
  });
  part("record").addEventListener("click", () =>
    toggleRecording().catch((error) => say(`The microphone cannot be used: ${error.message}`)),
  );
  part("link").addEventListener("click", async () => {
    history.replaceState(null, "", link());
    try {
      await navigator.clipboard.writeText(location.href);
      say("Copied. The link restores everything but your own files.");
    } catch {
      say("The link is in the address bar.");
    }
  });
  addEventListener("hashchange", () => {
    restore();
    ask();
  });
  addEventListener("resize", () => cards.forEach((each) => redraw(each, null)));
  dark.addEventListener("change", () => cards.forEach((each) => redraw(each, null)));
}

/** Say where the models run, and by what. */
function sayWhere() {
  const by = models?.engine ? ` by ${models.engine}` : "";
  part("where").textContent = settings.server
    ? "The models run at this server: what you record or open is sent to it, and not stored."
    : `Every model below runs in this page${by}. Nothing that you record or open leaves your computer.`;
}

/** Read the settings; at a server that asks for a token, have the user give it first. */
async function begin() {
  try {
    settings = await (await fetched("models.json")).json();
    part("token-form").hidden = true;
    if (!settings.models.length) throw new Error("the server has no models that name speakers, or is starting");
    sayWhere();
    part("api").hidden = !settings.server;
    setUp();
    restore();
    const { connect } = await import(settings.server ? "./remote.mjs" : "./local.mjs");
    models = await connect(settings, new URLSearchParams(location.hash.slice(1)).get("engine"));
    listen();
    await ask();
  } catch (error) {
    part("token-form").hidden = error.status !== 401;
    say(error.status === 401 ? "This server asks for a token." : `The models cannot be loaded: ${error.message}`);
  }
}

part("sign-in").addEventListener("click", () => {
  signIn(part("token").value.trim());
  begin();
});
part("token").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  part("sign-in").click();
});
await begin();
