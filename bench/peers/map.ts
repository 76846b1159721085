// A Map from gfn to spte, as a simulator would first be written in JavaScript. Small guests only.

import { type Guest, pagesOf, SEED, stateOf } from '../workloads.ts';
import { type Contender, now, type Outcome, type Walk } from './contender.ts';

const LARGEST = 2 ** 32;

export class MapOfSptes implements Contender {
  readonly name = 'JavaScript Map';
  #sptes = new Map<number, number>();
  #guest: Guest | undefined;
  #gfns: Uint32Array = new Uint32Array();

  takes(guest: Guest, walk: Walk): boolean {
    return (walk === 'zap' || walk === 'age') && guest.leaves === '4k' && guest.bytes <= LARGEST;
  }
  async build(guest: Guest): Promise<void> {
    this.#guest = guest;
  }
  async fill(): Promise<void> {
    const guest = this.#guest!;
    this.#sptes = new Map();
    for (let gfn = 0; gfn < pagesOf(guest); gfn++) {
      const state = stateOf(gfn, guest.density, SEED);
      if (state !== 0) this.#sptes.set(gfn, state);
    }
  }
  async use(gfns: Uint32Array): Promise<void> {
    this.#gfns = gfns;
  }
  #walk(walk: Walk, start: number, end: number): number {
    const sptes = this.#sptes;
    let leafs = 0;
    for (let gfn = start; gfn < end; gfn++) {
      if (walk === 'zap') {
        if (sptes.delete(gfn)) leafs++;
        continue;
      }
      const spte = sptes.get(gfn) ?? 0;
      if ((spte & 2) === 0) continue;
      leafs++;
      sptes.set(gfn, spte & ~2);
    }
    return leafs;
  }
  #sum(): number {
    return this.#gfns.reduce((sum, gfn, at) => sum + (this.#sptes.get(gfn) ?? 0) * (at + 1), 0);
  }
  async whole(walk: Walk): Promise<Outcome> {
    const start = now();
    const leafs = this.#walk(walk, 0, pagesOf(this.#guest!));
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
      looked += this.#sptes.get(gfns[at] + (at & (npages - 1))) ?? 0;
    }
    return { ns: now() - start, leafs, looked };
  }
  async look(): Promise<number> {
    return this.#sum();
  }
  async close(): Promise<void> {
    this.#sptes = new Map();
  }
}
