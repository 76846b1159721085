// Layout A in WebAssembly: compiles layout-a.ts with asc, as the engine is compiled, and drives it.

import { mkdirSync, readFileSync } from 'node:fs';
import asc from 'assemblyscript/asc';
import { DENSITIES, type Guest, LEAVES, pagesOf, SEED } from '../workloads.ts';
import { type Contender, now, type Outcome, type Walk } from './contender.ts';

interface Exports {
  GFNS: { value: number };
  leafs: { value: bigint };
  accessed: { value: bigint };
  looked: { value: bigint };
  build(pages: number, leaves: number): void;
  fill(density: number, seed: number): void;
  whole(nested: number, age: number, gfns: number): void;
  ranges(nested: number, age: number, npages: number, gfns: number): void;
  lookAll(gfns: number): void;
}

const FLAGS = ['--runtime', 'stub', '--importMemory', '--initialMemory', '600', '--memoryBase', '2048'];

export async function compileLayoutA(): Promise<WebAssembly.Module> {
  mkdirSync('build/bench', { recursive: true });
  const outFile = 'build/bench/layout-a.wasm';
  const optimise = ['-O3', '--converge', '--noAssert', '--use', 'abort='];
  const { error, stderr } = await asc.main(['bench/peers/layout-a.ts', ...FLAGS, ...optimise, '-o', outFile]);
  if (error !== null) throw new Error(`asc: ${stderr.toString()}`);
  return WebAssembly.compile(readFileSync(outFile));
}

/** Bytes before the tables: their arena starts at 32 MiB. */
const ARENA = 2 ** 25;

/** The tables that both walks work on. */
export class LayoutA {
  readonly #module: WebAssembly.Module;
  #exports: Exports | undefined;
  #memory: WebAssembly.Memory | undefined;
  guest: Guest | undefined;

  constructor(module: WebAssembly.Module) {
    this.#module = module;
  }
  build(guest: Guest): void {
    if (this.guest === guest) return;
    this.guest = guest;
    const tables = guest.leaves === '2m' ? guest.bytes / 2 ** 30 : guest.bytes / 2 ** 21;
    const wanted = Math.ceil((ARENA + tables * 1.01 * 4096 + 2 ** 21) / 65536);
    if (this.#memory === undefined || this.#memory.buffer.byteLength < wanted * 65536) {
      this.#memory = new WebAssembly.Memory({ initial: Math.max(wanted, 600) });
      const instance = new WebAssembly.Instance(this.#module, { env: { memory: this.#memory } });
      this.#exports = instance.exports as unknown as Exports;
    }
    this.exports.build(pagesOf(guest), LEAVES[guest.leaves]);
  }
  get exports(): Exports {
    return this.#exports!;
  }
  set gfns(gfns: Uint32Array) {
    new Uint32Array(this.#memory!.buffer, this.exports.GFNS.value, gfns.length).set(gfns);
  }
}

export class WasmA implements Contender {
  readonly name: string;
  readonly #tables: LayoutA;
  readonly #nested: number;
  #count = 0;

  constructor(tables: LayoutA, kind: 'tdp_iter' | 'nested') {
    this.name = `wasm layout A ${kind}`;
    this.#tables = tables;
    this.#nested = kind === 'nested' ? 1 : 0;
  }
  takes(guest: Guest): boolean {
    // Tables of 8 bytes a page within 4 GiB of memory.
    return guest.leaves === '2m' || guest.bytes <= 2 ** 40;
  }
  async build(guest: Guest): Promise<void> {
    this.#tables.build(guest);
  }
  async fill(): Promise<void> {
    this.#tables.exports.fill(DENSITIES.indexOf(this.#tables.guest!.density), SEED);
  }
  async use(gfns: Uint32Array): Promise<void> {
    this.#count = gfns.length;
    this.#tables.gfns = gfns;
  }
  #outcome(ns: number, walk: Walk): Outcome {
    const { leafs, accessed, looked } = this.#tables.exports;
    return { ns, leafs: Number(walk === 'zap' ? leafs.value : accessed.value), looked: Number(looked.value) };
  }
  async whole(walk: Walk): Promise<Outcome> {
    const { exports } = this.#tables;
    const start = now();
    exports.whole(this.#nested, walk === 'age' ? 1 : 0, this.#count);
    return this.#outcome(now() - start, walk);
  }
  async ranges(walk: Walk, npages: number): Promise<Outcome> {
    const { exports } = this.#tables;
    const start = now();
    exports.ranges(this.#nested, walk === 'age' ? 1 : 0, npages, this.#count);
    return this.#outcome(now() - start, walk);
  }
  async look(): Promise<number> {
    this.#tables.exports.lookAll(this.#count);
    return Number(this.#tables.exports.looked.value);
  }
  async close(): Promise<void> {}
}
