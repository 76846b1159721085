// What a bench asks of every contender, whatever language it is written in.

import type { Guest } from '../workloads.ts';

/** What an operation did, and what the sptes showed after it. Equal for all contenders, or the bench fails. */
export interface Outcome {
  /** Nanoseconds, the reading back included. */
  ns: number;
  /** Leaves that changed. */
  leafs: number;
  /** Sum over the sptes read back: state (present 1, accessed 2, dirty 4, read-only 8), in whole() times its place from 1. */
  looked: number;
}

/**
 * What is done to page tables: split takes 2M leaves to 4K and write-protects them, as dirty logging does; free takes tables
 * down with their leaves. Peers have their numbers by this order.
 */
export const WALKS = ['zap', 'age', 'write-protect', 'map', 'split', 'free'] as const;
export type Walk = (typeof WALKS)[number];

export interface Contender {
  readonly name: string;
  /** Whether it has a part in `walk` on `guest`, in ranges of `npages` (0: all of it at once). */
  takes(guest: Guest, walk: Walk, npages: number): boolean;
  /** Makes the guest, every table linked. */
  build(guest: Guest): Promise<void>;
  /** Maps the guest's pages as the workload has them, none of them where `walk` is to map them; not timed. */
  fill(walk: Walk): Promise<void>;
  /** The gfns that whole() reads and ranges() starts at. */
  use(gfns: Uint32Array): Promise<void>;
  /** Walks the whole guest, then reads the count and every gfn in use. */
  whole(walk: Walk): Promise<Outcome>;
  /** Zaps or ages `npages`, a power of two, from each gfn in use; after each reads the count and one spte of the range. */
  ranges(walk: Walk, npages: number): Promise<Outcome>;
  /** Sum over the gfns in use, as whole() has it; not timed. */
  look(): Promise<number>;
  close(): Promise<void>;
}

export const now = (): number => Number(process.hrtime.bigint());

/** What was read of a trace: how many changes, and the sum of all gfns and old and new sptes' codes, modulo 2^32. */
export interface Read {
  changes: number;
  sum: number;
}
/** The density of the peers' guests in trace.bench.ts, beside those of the workloads: every second page. */
export const ALTERNATE = 3;

/** Pages that were zapped and then mapped one by one: a time for each. */
export interface Calls {
  zapNs: number;
  mapNs: number;
  /** Leaves that changed, both ways. */
  leafs: number;
}
