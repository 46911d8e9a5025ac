// Starts the worker's program.
import init from "./worker.js";
await init();
