// Layout A in WebAssembly: compiles layout-a.ts with asc, as the engine is compiled, and drives it.

import { mkdirSync, readFileSync } from 'node:fs';
import asc from 'assemblyscript/asc';
import { DENSITIES, type Guest, LEAVES, pagesOf, SEED } from '../workloads.ts';
import { isBuilt } from './built.ts';
import { ALTERNATE, type Calls, type Contender, now, type Outcome, type Read, WALKS, type Walk } from './contender.ts';

interface Exports {
  GFNS: { value: number };
  leafs: { value: bigint };
  looked: { value: bigint };
  build(pages: number, leaves: number): void;
  fill(density: number, seed: number): void;
  whole(nested: number, op: number, gfns: number): void;
  ranges(nested: number, op: number, npages: number, gfns: number): void;
  lookAll(gfns: number): void;
  one(op: number, gfn: number): number;
  traced(gfn: number, npages: number): number;
}

const FLAGS = ['--runtime', 'stub', '--importMemory', '--initialMemory', '600', '--memoryBase', '2048'];

export async function compileLayoutA(): Promise<WebAssembly.Module> {
  mkdirSync('build/bench', { recursive: true });
  const outFile = 'build/bench/layout-a.wasm';
  if (isBuilt(outFile, ['bench/peers/layout-a.ts', 'bench/peers/layout-a-wasm.ts'])) return compiled(outFile);
  const optimise = ['-O3', '--converge', '--noAssert', '--use', 'abort='];
  const { error, stderr } = await asc.main(['bench/peers/layout-a.ts', ...FLAGS, ...optimise, '-o', outFile]);
  if (error !== null) throw new Error(`asc: ${stderr.toString()}`);
  return compiled(outFile);
}
const compiled = (file: string) => WebAssembly.compile(readFileSync(file));

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
    // Of a small guest even where its leaves are of 2M: they may be split.
    const isSmall = guest.bytes <= 2 ** 36;
    const tables = guest.leaves === '2m' && !isSmall ? guest.bytes / 2 ** 30 : guest.bytes / 2 ** 21;
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
  /** Four words for each of `records` records. */
  records(records: number): Uint32Array {
    return new Uint32Array(this.#memory!.buffer, this.exports.GFNS.value, records * 4);
  }
  set gfns(gfns: Uint32Array) {
    new Uint32Array(this.#memory!.buffer, this.exports.GFNS.value, gfns.length).set(gfns);
  }
}

export class WasmA implements Contender {
  readonly name: string;
  readonly #tables: LayoutA;
  readonly #nested: number;
  #gfns: Uint32Array = new Uint32Array();

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
  async fill(walk: Walk): Promise<void> {
    this.#tables.exports.fill(DENSITIES.indexOf(this.#tables.guest!.density), SEED);
    if (walk === 'map') this.#tables.exports.whole(1, WALKS.indexOf('zap'), 0);
  }
  async use(gfns: Uint32Array): Promise<void> {
    this.#gfns = gfns;
    this.#tables.gfns = gfns;
  }
  #outcome(ns: number): Outcome {
    const { leafs, looked } = this.#tables.exports;
    return { ns, leafs: Number(leafs.value), looked: Number(looked.value) };
  }
  async whole(walk: Walk): Promise<Outcome> {
    const { exports } = this.#tables;
    const start = now();
    exports.whole(this.#nested, WALKS.indexOf(walk), this.#gfns.length);
    return this.#outcome(now() - start);
  }
  async ranges(walk: Walk, npages: number): Promise<Outcome> {
    const { exports } = this.#tables;
    const start = now();
    exports.ranges(this.#nested, WALKS.indexOf(walk), npages, this.#gfns.length);
    return this.#outcome(now() - start);
  }
  async look(): Promise<number> {
    this.#tables.exports.lookAll(this.#gfns.length);
    return Number(this.#tables.exports.looked.value);
  }
  /** A call for each page: of what it costs to come from JavaScript, all but the checks. */
  async calls(npages: number): Promise<Calls> {
    const { one } = this.#tables.exports;
    const [zap, map] = [WALKS.indexOf('zap'), WALKS.indexOf('map')];
    let leafs = 0;
    let zapMs = 0;
    let mapMs = 0;
    for (const first of this.#gfns) {
      const start = performance.now();
      for (let gfn = first; gfn < first + npages; gfn++) leafs += one(zap, gfn);
      const middle = performance.now();
      for (let gfn = first; gfn < first + npages; gfn++) leafs += one(map, gfn);
      zapMs += middle - start;
      mapMs += performance.now() - middle;
    }
    return { zapNs: zapMs * 1e6, mapNs: mapMs * 1e6, leafs };
  }
  /** As Native.trace(), what reads the records being JavaScript: `read`. */
  async trace(npages: number, read: (words: Uint32Array, records: number) => Read): Promise<Read & { ns: number }> {
    const tables = this.#tables;
    tables.exports.fill(ALTERNATE, SEED);
    let changes = 0;
    let sum = 0;
    const start = now();
    for (let gfn = 0; gfn < pagesOf(tables.guest!); gfn += npages) {
      const records = tables.exports.traced(gfn, npages);
      const found = read(tables.records(records), records);
      changes += found.changes;
      sum = (sum + found.sum) | 0;
    }
    return { ns: now() - start, changes, sum };
  }
  async close(): Promise<void> {}
}
