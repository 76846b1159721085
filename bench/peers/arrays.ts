// Layout A in plain JavaScript: one Uint32Array of sptes (flags alone: pfns would need a second), walked a page at a time.

import { type Guest, PAGE, pagesOf, SEED, stateOf } from '../workloads.ts';
import { type Contender, now, type Outcome, type Walk } from './contender.ts';

const LARGEST = 64 * 2 ** 30;

export class Arrays implements Contender {
  readonly name = 'JavaScript typed array';
  #sptes = new Uint32Array();
  #filled = new Uint32Array();
  #gfns: Uint32Array = new Uint32Array();

  takes(guest: Guest, walk: Walk): boolean {
    return (walk === 'zap' || walk === 'age') && guest.leaves === '4k' && guest.bytes <= LARGEST;
  }
  async build(guest: Guest): Promise<void> {
    const pages = pagesOf(guest);
    this.#filled = new Uint32Array(pages);
    for (let gfn = 0; gfn < pages; gfn++) this.#filled[gfn] = stateOf(gfn, guest.density, SEED);
    this.#sptes = new Uint32Array(guest.bytes / PAGE);
  }
  async fill(): Promise<void> {
    this.#sptes.set(this.#filled);
  }
  async use(gfns: Uint32Array): Promise<void> {
    this.#gfns = gfns;
  }
  #walk(walk: Walk, start: number, end: number): number {
    const sptes = this.#sptes;
    let leafs = 0;
    if (walk === 'zap') {
      for (let gfn = start; gfn < end; gfn++) {
        if ((sptes[gfn] & 1) === 0) continue;
        leafs++;
        sptes[gfn] = 0;
      }
    } else {
      for (let gfn = start; gfn < end; gfn++) {
        if ((sptes[gfn] & 2) === 0) continue;
        leafs++;
        sptes[gfn] &= ~2;
      }
    }
    return leafs;
  }
  #sum(): number {
    let looked = 0;
    for (let at = 0; at < this.#gfns.length; at++) looked += this.#sptes[this.#gfns[at]] * (at + 1);
    return looked;
  }
  async whole(walk: Walk): Promise<Outcome> {
    const start = now();
    const leafs = this.#walk(walk, 0, this.#sptes.length);
    const looked = this.#sum();
    return { ns: now() - start, leafs, looked };
  }
  async ranges(walk: Walk, npages: number): Promise<Outcome> {
    const gfns = this.#gfns;
    let leafs = 0;
    let looked = 0;
    const start = now();
    for (let at = 0; at < gfns.length; at++) {
      leafs += this.#walk(walk, gfns[at], gfns[at] + npages);
      looked += this.#sptes[gfns[at] + (at & (npages - 1))];
    }
    return { ns: now() - start, leafs, looked };
  }
  async look(): Promise<number> {
    return this.#sum();
  }
  async close(): Promise<void> {
    this.#sptes = new Uint32Array();
    this.#filled = new Uint32Array();
  }
}
