// The models in this page: their graphs run in a worker.

/** Start the engine; return what answers, and says by `engine` where. `wanted` is the name of an engine, or null. */
export async function connect(settings, wanted) {
  const worker = new Worker("worker.mjs", { type: "module" });
  const waiting = new Map();
  let engine = "";
  worker.addEventListener("message", ({ data: { id, result, error, ...said } }) => {
    const { resolve, reject } = waiting.get(id);
    waiting.delete(id);
    engine = said.engine ?? engine;
    error === undefined ? resolve(result) : reject(new Error(error));
  });
  const call = (name, parameters) =>
    new Promise((resolve, reject) => {
      const id = crypto.randomUUID?.() ?? String(Math.random());
      waiting.set(id, { resolve, reject });
      worker.postMessage({ id, call: name, ...parameters });
    });
  await call("load", { settings, engine: wanted });
  return {
    get engine() {
      return engine;
    },
    /** Yield [variant, answer] for each model, as it is there; `target` is a speaker's name, or null for the best. */
    async *answers(samples, target) {
      const speech = await call("speech", { samples, windows: settings.models[0].windows });
      for (const { variant, speakers } of settings.models) {
        const label = target === null ? -1 : speakers.indexOf(target);
        yield [variant, await call("explain", { variant, samples, speech, target: label })];
      }
    },
  };
}
