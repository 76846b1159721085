// From bytes to an instance: finds, compiles and caches the engine's Wasm, in Node, browsers and workers.

import type { EngineExports } from './exports.ts';

export type WasmSource = WebAssembly.Module | BufferSource | Response | URL;

const shipped = new URL('../eptsim.wasm', import.meta.url);
const shippedDebug = new URL('../eptsim.debug.wasm', import.meta.url);
// Run from src/ (tests, tools), the build stands beside it.
const fromSource = /\/src\/engine\/load\.ts/.test(import.meta.url);
const urlOf = (debug: boolean): URL => {
  const built = debug ? shippedDebug : shipped;
  return fromSource ? new URL(`../../dist/${debug ? 'eptsim.debug.wasm' : 'eptsim.wasm'}`, import.meta.url) : built;
};

const compiled: { release?: WebAssembly.Module; debug?: WebAssembly.Module } = {};
const cacheKey = (debug: boolean) => (debug ? 'debug' : 'release') as 'debug' | 'release';

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
    const key = cacheKey(debug);
    compiled[key] ??= await compileFrom(urlOf(debug));
    return compiled[key];
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
    const key = cacheKey(debug);
    compiled[key] ??= compileFile(urlOf(debug));
    return compiled[key];
  }
  if (source instanceof URL) return compileFile(source);
  if (source instanceof ArrayBuffer || ArrayBuffer.isView(source))
    return new WebAssembly.Module(source as BufferSource);
  throw new TypeError('createVmSync() takes wasm as a module, bytes or a file: URL; createVm() takes the rest');
}

function compileFile(url: URL): WebAssembly.Module {
  const fs = url.protocol === 'file:' ? nodeFs() : undefined;
  if (fs === undefined) {
    throw new Error('createVmSync() cannot load the engine here: await createVm() once, or pass `wasm`');
  }
  return new WebAssembly.Module(fs.readFileSync(url));
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
  return { exports: instance.exports as unknown as EngineExports, memory };
}
