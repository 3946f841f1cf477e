// Passes the microphone's samples on.
registerProcessor(
  "recorder",
  class extends AudioWorkletProcessor {
    process([input]) {
      if (input[0]) this.port.postMessage(input[0].slice());
      return true;
    }
  },
);
