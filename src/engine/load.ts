// From bytes to an instance: finds, compiles and caches the engine's Wasm, in Node, browsers and workers.

import type { EngineExports } from './exports.ts';
import { exportNames, layout } from './layout.ts';

export type WasmSource = WebAssembly.Module | BufferSource | Response | URL;

const shipped = new URL('../eptsim.wasm', import.meta.url);
const shippedSteps = new URL('../eptsim.steps.wasm', import.meta.url);
const shippedDebug = new URL('../eptsim.debug.wasm', import.meta.url);
// Run from src/ (tests, tools), the build stands beside it.
const fromSource = /\/src\/engine\/load\.ts/.test(import.meta.url);
const shippedFiles = { release: shipped, steps: shippedSteps, debug: shippedDebug };
type Build = keyof typeof shippedFiles;
const urlOf = (build: Build): URL =>
  fromSource
    ? new URL(`../../dist/${build === 'release' ? 'eptsim.wasm' : `eptsim.${build}.wasm`}`, import.meta.url)
    : shippedFiles[build];

const compiled: Partial<Record<Build, WebAssembly.Module>> = {};
const buildOf = (debug: boolean): Build => (debug ? 'debug' : 'release');

interface NodeFs {
  readFileSync(path: URL): Uint8Array<ArrayBuffer>;
}
/** Node's file system, without an import that a browser's bundler would follow. */
function nodeFs(): NodeFs | undefined {
  const builtin = (globalThis as { process?: { getBuiltinModule?(name: string): unknown } }).process?.getBuiltinModule;
  return builtin?.('node:fs') as NodeFs | undefined;
}

/** Compiles `source`, or the engine that is shipped beside this file. */
export async function compileEngine(source: WasmSource | undefined, debug: boolean): Promise<WebAssembly.Module> {
  if (source instanceof WebAssembly.Module) return source;
  if (source === undefined) {
    const build = buildOf(debug);
    compiled[build] ??= await compileFrom(urlOf(build));
    return compiled[build];
  }
  if (typeof Response !== 'undefined' && source instanceof Response) return compileResponse(source);
  if (source instanceof URL) return compileFrom(source);
  return compileBytes(source);
}

async function compileFrom(url: URL): Promise<WebAssembly.Module> {
  const fs = url.protocol === 'file:' ? nodeFs() : undefined;
  if (fs !== undefined) return WebAssembly.compile(fs.readFileSync(url));
  return compileResponse(await fetch(url));
}

async function compileResponse(response: Response): Promise<WebAssembly.Module> {
  if (!response.ok) throw new Error(`the engine at ${response.url} could not be loaded: HTTP ${response.status}`);
  return WebAssembly.compile(await response.arrayBuffer());
}

function compileBytes(bytes: unknown): Promise<WebAssembly.Module> {
  if (!(bytes instanceof ArrayBuffer) && !ArrayBuffer.isView(bytes)) {
    throw new TypeError('wasm must be a WebAssembly.Module, bytes, a Response or a URL');
  }
  return WebAssembly.compile(bytes as BufferSource);
}

/** As compileEngine(), at once: from bytes, a module, or (in Node) a file. */
export function compileEngineSync(source: WasmSource | undefined, debug: boolean): WebAssembly.Module {
  if (source instanceof WebAssembly.Module) return source;
  if (source === undefined) {
    const build = buildOf(debug);
    compiled[build] ??= compileFile(urlOf(build), 'createVmSync() cannot load the engine here', 'wasm');
    return compiled[build];
  }
  return compileAtOnce(source, 'wasm');
}

function compileAtOnce(source: WasmSource, option: string): WebAssembly.Module {
  if (source instanceof URL) return compileFile(source, `createVmSync() cannot load ${source}`, option);
  if (source instanceof ArrayBuffer || ArrayBuffer.isView(source))
    return new WebAssembly.Module(source as BufferSource);
  throw new TypeError(`createVmSync() takes ${option} as a module, bytes or a file: URL; createVm() takes the rest`);
}

function compileFile(url: URL, why: string, option: string): WebAssembly.Module {
  const fs = url.protocol === 'file:' ? nodeFs() : undefined;
  if (fs === undefined) throw new Error(`${why}: await createVm() once, or pass \`${option}\``);
  return new WebAssembly.Module(fs.readFileSync(url));
}

// --- The build that can pause ----------------------------------------------------------------------------------------
//
// Operations in pieces run on a second build: the same code, made able to stop in the middle of a call, a third larger and
// a fifth slower. It works on the same memory; a VM takes it when it first needs it.

/** What must be at hand before: all of it where files cannot be read later, unless the caller brings its own engine. */
export async function prepareSteps(
  source: WasmSource | undefined,
  ownEngine: boolean,
  debug: boolean,
): Promise<WebAssembly.Module | undefined> {
  if (source !== undefined) return compileEngine(source, false);
  if (debug || ownEngine || urlOf('steps').protocol === 'file:') return undefined;
  try {
    compiled.steps ??= await compileFrom(urlOf('steps'));
  } catch {
    // A VM that never steps can do without: steps() says what is missing.
  }
  return compiled.steps;
}

/** As prepareSteps(), at once, when it is needed. */
export function compileStepsSync(source: WasmSource | undefined): WebAssembly.Module {
  if (source instanceof WebAssembly.Module) return source;
  if (source !== undefined) return compileAtOnce(source, 'stepsWasm');
  compiled.steps ??= compileFile(urlOf('steps'), 'steps() cannot load the build that can pause', 'stepsWasm');
  return compiled.steps;
}

const PAGE_BYTES = 65536;

/** A fresh instance with a memory of `bytes`, which never grows. */
export function instantiate(
  module: WebAssembly.Module,
  bytes: number,
  onPause: () => void,
): { exports: EngineExports; memory: WebAssembly.Memory } {
  const pages = Math.ceil(bytes / PAGE_BYTES);
  const memory = new WebAssembly.Memory({ initial: pages, maximum: pages });
  return { exports: instantiateOver(module, memory, onPause), memory };
}

/** An instance that works on `memory`. */
export function instantiateOver(
  module: WebAssembly.Module,
  memory: WebAssembly.Memory,
  onPause: () => void,
): EngineExports {
  const text = (ptr: number) => {
    const words = new Uint16Array(memory.buffer, ptr, new Uint32Array(memory.buffer)[(ptr >>> 2) - 1] >>> 1);
    return String.fromCharCode(...words);
  };
  const instance = new WebAssembly.Instance(module, {
    env: {
      memory,
      pause: onPause,
      abort(message: number, file: number, line: number) {
        throw new Error(`${message === 0 ? 'abort' : text(message)} (${file === 0 ? '?' : text(file)}:${line})`);
      },
    },
  });
  const hash = instance.exports.LAYOUT_HASH as WebAssembly.Global | undefined;
  if (hash === undefined || hash.value >>> 0 !== layout.LAYOUT_HASH) {
    throw new Error('the engine was not built with this version of eptsim');
  }
  return named(instance.exports);
}

/** `exports`, its functions also under their names. */
function named(exports: WebAssembly.Exports): EngineExports {
  const functions = exportNames.map((name, index) => [name, exports[index.toString(36)]]);
  return { ...exports, ...Object.fromEntries(functions) } as EngineExports;
}
