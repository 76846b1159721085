// One memslot with its huge-page bookkeeping, and the pieces in which a guest_memfd binding is stored.
// Mirrors: kvm_alloc_memslot_metadata(), hugepage_has_attrs() and kvm_arch_post_set_memory_attributes() in arch/x86/kvm.

import { pagesOf, roundDown } from './page-tables.ts';

export const LOG_DIRTY_PAGES = 1;
export const READONLY = 2;
export const GUEST_MEMFD = 4;

/** A guest_memfd file: which pages exist, which are poisoned, who is bound where. */
export class GmemFile {
  readonly pages = new Map<number, number>();
  readonly poisoned = new Set<number>();
  /** Pages that hold what the guest wrote; a TD's content lives in its mapping instead. */
  readonly written = new Set<number>();
  readonly slots: Slot[] = [];
  isOpen = true;
  readonly fd: number;
  readonly npages: number;

  constructor(fd: number, npages: number) {
    this.fd = fd;
    this.npages = npages;
  }
}

export interface Slot {
  asId: number;
  id: number;
  base: number;
  npages: number;
  /** In pages. */
  hva: number;
  flags: number;
  gmem: { file: GmemFile; pgoff: number } | null;
  /** Offsets of dirty pages, or null without a bitmap. */
  dirty: Set<number> | null;
  /** First gfns of mixed regions, by level. */
  mixed: { 2: Set<number>; 3: Set<number> };
}

export const slotEnd = (slot: Slot): number => slot.base + slot.npages;
export const isLogged = (slot: Slot): boolean => (slot.flags & LOG_DIRTY_PAGES) !== 0;

/** True if the slot's geometry forbids a leaf of `level` at `gfn`. */
function isMisaligned(slot: Slot, level: number, gfn: number): boolean {
  const region = roundDown(gfn, level);
  if (slot.base % pagesOf(level) !== slot.hva % pagesOf(level)) return true;
  return region < slot.base || region + pagesOf(level) > slotEnd(slot);
}

export function isDisallowed(slot: Slot, level: 2 | 3, gfn: number): boolean {
  return isMisaligned(slot, level, gfn) || slot.mixed[level].has(roundDown(gfn, level));
}

type Attributes = (gfn: number) => number;

function isUniform(slot: Slot, level: 2 | 3, gfn: number, wanted: number, attributes: Attributes): boolean {
  for (let i = 0; i < 512; i++) {
    const child = gfn + i * pagesOf(level - 1);
    if (level === 3 && slot.mixed[2].has(child)) return false;
    if (attributes(child) !== wanted) return false;
  }
  return true;
}

function setMixed(slot: Slot, level: 2 | 3, gfn: number, mixed: boolean): void {
  if (mixed) slot.mixed[level].add(gfn);
  else slot.mixed[level].delete(gfn);
}

/** A new slot over attributes that already exist. */
export function initMixed(slot: Slot, attributes: Attributes): void {
  for (const level of [2, 3] as const) {
    const npages = pagesOf(level);
    for (let gfn = roundDown(slot.base + npages - 1, level); gfn + npages <= slotEnd(slot); gfn += npages) {
      setMixed(slot, level, gfn, !isUniform(slot, level, gfn, attributes(gfn), attributes));
    }
  }
}

export function postSetMixed(slot: Slot, start: number, end: number, value: number, attributes: Attributes): void {
  for (const level of [2, 3] as const) {
    const npages = pagesOf(level);
    let gfn = roundDown(start, level);
    if (gfn !== start || gfn + npages > end) {
      if (gfn >= slot.base && gfn + npages <= slotEnd(slot)) {
        setMixed(slot, level, gfn, !isUniform(slot, level, gfn, value, attributes));
      }
      gfn += npages;
    }
    for (; gfn + npages <= end; gfn += npages) setMixed(slot, level, gfn, false);
    if (gfn < end && gfn + npages <= slotEnd(slot)) {
      setMixed(slot, level, gfn, !isUniform(slot, level, gfn, value, attributes));
    }
  }
}

/** The huge-page regions at the ends of [start, end) that the guard adds to the invalidation. */
export function guardRegions(slot: Slot, start: number, end: number): [number, number][] {
  const regions: [number, number][] = [];
  for (const level of [2, 3] as const) {
    const npages = pagesOf(level);
    const inSlot = (gfn: number): boolean =>
      gfn >= slot.base && gfn + npages <= slotEnd(slot) && !slot.mixed[level].has(gfn);
    const head = roundDown(start, level);
    const tail = roundDown(end, level);
    if ((head !== start || head + npages > end) && inSlot(head)) regions.push([head, head + npages]);
    if (tail !== head && tail < end && inSlot(tail)) regions.push([tail, tail + npages]);
  }
  return regions;
}

/** The xarray entries of a binding [pgoff, pgoff + npages), as xa_store_range() cuts them. Plain numbers: below 2^31. */
export function bindingPieces(pgoff: number, npages: number): [number, number][] {
  const pieces: [number, number][] = [];
  const last = pgoff + npages - 1;
  for (let first = pgoff; first <= last; ) {
    let f = first;
    let shift = 1;
    let n = last - f;
    let o = 63;
    while (f % 64 === 0) {
      if (n < 63 || (n === 63 && o < 63)) break;
      shift *= 64;
      if (o === 63) o = n % 64;
      n = Math.floor(n / 64);
      f /= 64;
    }
    o = f % 64;
    if (o + n > 63) {
      n = 63 - o;
    }
    if ((f + n + 1) * shift - 1 > last) n -= 1;
    pieces.push([f * shift, (f + n + 1) * shift]);
    first = (f + n + 1) * shift;
  }
  return pieces;
}
