// roaring-wasm: a compressed bitmap of the gfns that are present. It answers zaps only: count what is there, remove it.

import { RoaringBitmap32 } from 'roaring-wasm';
import { type Guest, pagesOf, SEED, stateOf } from '../workloads.ts';
import { type Contender, now, type Outcome, type Walk } from './contender.ts';

const LARGEST = 64 * 2 ** 30;

export class Roaring implements Contender {
  readonly name = 'roaring-wasm (present only)';
  #filled: RoaringBitmap32 | undefined;
  #present: RoaringBitmap32 | undefined;
  #guest: Guest | undefined;
  #gfns: Uint32Array = new Uint32Array();

  takes(guest: Guest, walk: Walk): boolean {
    return walk === 'zap' && guest.leaves === '4k' && guest.bytes <= LARGEST;
  }
  async build(guest: Guest): Promise<void> {
    await this.close();
    this.#guest = guest;
    this.#filled = new RoaringBitmap32();
    const pages = pagesOf(guest);
    if (guest.density === 'full') {
      this.#filled.addRange(0, pages);
      return;
    }
    const chunk: number[] = [];
    for (let gfn = 0; gfn < pages; gfn++) {
      if (stateOf(gfn, guest.density, SEED) !== 0) chunk.push(gfn);
      if (chunk.length === 65536 || gfn === pages - 1) this.#filled.addMany(chunk.splice(0));
    }
  }
  async fill(): Promise<void> {
    this.#present?.dispose();
    this.#present = this.#filled!.clone();
  }
  async use(gfns: Uint32Array): Promise<void> {
    this.#gfns = gfns;
  }
  #zap(start: number, end: number): number {
    const leafs = this.#present!.rangeCardinality(start, end);
    this.#present!.removeRange(start, end);
    return leafs;
  }
  #state(gfn: number): number {
    return this.#present!.has(gfn) ? stateOf(gfn, this.#guest!.density, SEED) : 0;
  }
  #sum(): number {
    return this.#gfns.reduce((sum, gfn, at) => sum + this.#state(gfn) * (at + 1), 0);
  }
  async whole(): Promise<Outcome> {
    const start = now();
    const leafs = this.#zap(0, pagesOf(this.#guest!));
    const looked = this.#sum();
    return { ns: now() - start, leafs, looked };
  }
  async ranges(_walk: Walk, npages: number): Promise<Outcome> {
    const gfns = this.#gfns;
    let leafs = 0;
    let looked = 0;
    const start = now();
    for (let at = 0; at < gfns.length; at++) {
      leafs += this.#zap(gfns[at], gfns[at] + npages);
      looked += this.#state(gfns[at] + (at & (npages - 1)));
    }
    return { ns: now() - start, leafs, looked };
  }
  async look(): Promise<number> {
    return this.#sum();
  }
  async close(): Promise<void> {
    this.#filled?.dispose();
    this.#present?.dispose();
    this.#filled = undefined;
    this.#present = undefined;
  }
}
