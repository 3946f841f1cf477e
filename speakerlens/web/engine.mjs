// Where the graphs run: on the GPU by WebGPU, where there is one, else in WebAssembly.

const WASM = { name: "WebAssembly", file: "./runtime/ort.wasm.bundle.min.mjs", providers: ["wasm"] };
const GPU = { name: "WebGPU", file: "./runtime/ort.jspi.bundle.min.mjs", providers: ["webgpu"] };

/**
 * Return the engine: its name, ONNX Runtime as `ort`, and the execution providers.
 *
 * `wanted` is "WebGPU", "WebAssembly", or null for WebGPU where it is of use: emulated by the processor it is slower.
 */
export async function start(wanted = null) {
  if (wanted !== WASM.name && (await usable(wanted === GPU.name))) {
    try {
      return await open(GPU);
    } catch (error) {
      console.warn(`WebGPU cannot be used: ${error?.message ?? error}`);
    }
  }
  return open(WASM);
}

async function open(engine) {
  const ort = await import(engine.file);
  ort.env.wasm.wasmPaths = new URL("./runtime/", import.meta.url).href;
  ort.env.wasm.numThreads = 1; // more need headers that plain file servers do not send
  ort.env.logLevel = "error"; // shapes are computed by the processor, which is warned of
  return { ...engine, ort };
}

/** Return whether the browser has WebGPU, and what the runtime for it needs: promises in WebAssembly. */
async function usable(emulated) {
  if (!navigator.gpu || !("Suspending" in WebAssembly)) return false;
  const adapter = await navigator.gpu.requestAdapter().catch(() => null);
  return Boolean(adapter) && (emulated || !adapter.info.isFallbackAdapter);
}
