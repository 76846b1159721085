// The guests and ranges that the benches work on: seeded, the same for every contender in every language.
//
// A page's state is a hash of its gfn and the seed, so that no contender has to be told what another one built.

export const SEED = 7;
export const PAGE = 4096;
export const KIB = 1024;
export const MIB = 1024 * KIB;
export const GIB = 1024 * MIB;
export const TIB = 1024 * GIB;

/** full: every page mapped, all alike. half: each with a chance of 1/2, and half of these young. fragmented: runs of 16
 * pages are missing, half of the rest is young. */
export type Density = 'full' | 'half' | 'fragmented';
export const DENSITIES: readonly Density[] = ['full', 'half', 'fragmented'];
/** mixed: the lower half of the guest in 2M leaves, the upper half in 4K leaves. */
export type Leaves = '4k' | '2m' | 'mixed';
export const LEAVES: Readonly<Record<Leaves, number>> = { '4k': 1, '2m': 2, mixed: 3 };

export interface Guest {
  bytes: number;
  density: Density;
  leaves: Leaves;
}
export const pagesOf = (guest: Guest): number => guest.bytes / PAGE;

/** 32 bits that look random. Peers in C and AssemblyScript have the same function. */
export function hash(value: number, seed: number): number {
  let x = (Math.imul(value, 0x9e3779b1) + seed) | 0;
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return (x ^ (x >>> 16)) >>> 0;
}

/** What an entry is, as the contenders show it: present 1, accessed 2, dirty 4. `index` counts leaves of its level. */
export function stateOf(index: number, density: Density, seed: number): number {
  if (density === 'full') return 7;
  const bits = hash(index, seed);
  if (density === 'half' && (bits & 1) === 0) return 0;
  if (density === 'fragmented' && (hash(index >>> 4, seed) & 3) === 0) return 0;
  return bits & 2 ? 7 : 5;
}

/** The level of the leaf that maps `gfn`, if any does. */
export function leafLevelAt(guest: Guest, gfn: number): 1 | 2 {
  if (guest.leaves === 'mixed') return gfn < pagesOf(guest) / 2 ? 2 : 1;
  return guest.leaves === '2m' ? 2 : 1;
}

/** Numbers in [0, 1), the same for the same seed. */
export function random(seed: number): () => number {
  let counter = 0;
  return () => hash(counter++, seed) / 2 ** 32;
}

export type Order = 'random' | 'sequential';

/** First gfns of `count` ranges of `npages`, aligned to their size; sequential ones wrap around at the guest's end. */
export function rangeStarts(guest: Guest, npages: number, count: number, order: Order, seed: number): Uint32Array {
  const places = Math.floor(pagesOf(guest) / npages);
  const next = random(seed);
  const first = Math.floor(next() * places);
  return Uint32Array.from({ length: count }, (_, index) => {
    const place = order === 'random' ? Math.floor(next() * places) : (first + index) % places;
    return place * npages;
  });
}

/** `count` gfns anywhere in the guest. */
export function gfnsToRead(guest: Guest, count: number, seed: number): Uint32Array {
  return rangeStarts(guest, 1, count, 'random', seed);
}

/** `count` gfns anywhere in [0, pages), of guests whose gfns need more than 32 bits too: of 2^34 pages every fourth has a chance. */
export function gfnsAnywhere(pages: number, count: number, seed: number): Float64Array {
  const next = random(seed);
  return Float64Array.from({ length: count }, () => Math.floor(next() * pages));
}

/** Sptes that are read back after a whole guest. */
export const READ_BACK = 1000;

/** Ranges that are zapped in a guest: operation, bytes of each, and how many at most. */
export const RANGES: readonly [name: string, bytes: number, count: number][] = [
  ['zap-1GiB', GIB, 32],
  ['zap-2MiB', 2 * MIB, 4000],
  ['zap-64KiB', 64 * KIB, 20_000],
  ['zap-4KiB', 4 * KIB, 100_000],
];
