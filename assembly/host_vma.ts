// The areas of the VMM's address space: found, cut and joined. Fires no event; host_mm.ts does, at the right moment.
//
// A sorted array of records, ctl.vmaCount of them. Neighbours with equal attributes are joined when one of them
// changes, as the kernel does: how many areas a range crosses decides how many notifier events it gets.
// Mirrors: mm/vma.c (v6.12). Left out: mlock, memory policies, userfaultfd.

import { ctl, PROFILE_6_16 } from './control';
import { VMA_BYTES, VMAS_BASE } from './layout';

// Vma, 40 bytes.
//
//   0          8          16         24         28     32     33     34      36
//   ├──────────┼──────────┼──────────┼──────────┼──────┼──────┼──────┼───────┼──────┐
//   │ start    │ end      │ offset   │ anonVma  │ file │ kind │ prot │ flags │ (pad)│
//   └──────────┴──────────┴──────────┴──────────┴──────┴──────┴──────┴───────┴──────┘
//   offset: place in the object less hva, modulo 2^64; the same on both sides of a cut.
//   anonVma: id, 0 = none yet.   file: id of the shared file, 0 = anonymous.
@unmanaged
export class Vma {
  start: u64;
  end: u64;
  offset: u64;
  anonVma: u32;
  file: u32;
  kind: u8;
  prot: u8;
  flags: u16;
  pad: u32;
}
if (offsetof<Vma>() != 40) ERROR('Vma is no longer 40 bytes: redraw it');

// What backs an area.
export const VMA_ANON: u8 = 0;
export const VMA_HUGETLB_2M: u8 = 1;
export const VMA_HUGETLB_1G: u8 = 2;
export const VMA_SHMEM: u8 = 3;

/** MADV_HUGEPAGE: faults may map 2M at once (the host's transparent huge pages are at `madvise`). */
export const VMA_HUGEPAGE: u16 = 1;
/** MADV_NOHUGEPAGE */
export const VMA_NOHUGEPAGE: u16 = 2;
/** MADV_MERGEABLE */
export const VMA_MERGEABLE: u16 = 4;

/** vm.max_map_count */
export const MAX_MAP_COUNT: u32 = 65530;

export function vmaAt(index: u32): Vma {
  return changetype<Vma>(VMAS_BASE + <usize>index * VMA_BYTES);
}

/** The first area that ends after `hva`; ctl.vmaCount if none. Mirrors: find_vma() */
export function findVma(hva: u64): u32 {
  let low: u32 = 0;
  let high = ctl.vmaCount;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (vmaAt(middle).end > hva) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** Where lookupVma() last found an area: looked at first, and never trusted. */
let lastIndex: u32 = 0;

/** The area that holds `hva`; ctl.vmaCount if none. Mirrors: vma_lookup() */
export function lookupVma(hva: u64): u32 {
  if (lastIndex < ctl.vmaCount) {
    const vma = vmaAt(lastIndex);
    if (hva >= vma.start && hva < vma.end) return lastIndex;
  }
  return searchVmas(hva);
}
function searchVmas(hva: u64): u32 {
  const index = findVma(hva);
  if (index == ctl.vmaCount || vmaAt(index).start > hva) return ctl.vmaCount;
  lastIndex = index;
  return index;
}

export function isHugetlb(vma: Vma): bool {
  return vma.kind == VMA_HUGETLB_2M || vma.kind == VMA_HUGETLB_1G;
}
/** Bytes of one page of the area as the page tables map it at least. */
export function pageBytesOf(vma: Vma): u64 {
  return vma.kind == VMA_HUGETLB_2M ? 1 << 21 : vma.kind == VMA_HUGETLB_1G ? 1 << 30 : 1 << 12;
}

/** Makes room for a record at `index`, a copy of the one that was there. Requires: vmaCount < VMAS_MAX. */
export function insertVma(index: u32): Vma {
  const ptr = VMAS_BASE + <usize>index * VMA_BYTES;
  memory.copy(ptr + VMA_BYTES, ptr, <usize>(ctl.vmaCount - index) * VMA_BYTES);
  ctl.vmaCount++;
  return changetype<Vma>(ptr);
}

/** Removes `count` records from `index` on. */
export function removeVmas(index: u32, count: u32): void {
  const ptr = VMAS_BASE + <usize>index * VMA_BYTES;
  memory.copy(ptr, ptr + <usize>count * VMA_BYTES, <usize>(ctl.vmaCount - index - count) * VMA_BYTES);
  ctl.vmaCount -= count;
}

/** Cuts the area at `index` in two at `hva`; the second part is at index + 1. */
export function cutVma(index: u32, hva: u64): void {
  insertVma(index).end = hva;
  vmaAt(index + 1).start = hva;
}

/** Mirrors: are_anon_vmas_compatible(), without fork() */
export function anonVmaCompatible(one: u32, other: u32): bool {
  return one == 0 || other == 0 || one == other;
}

/**
 * Whether an area with `anonVma` may become part of a neighbour that has `other`. Before 6.15 one without an anon_vma took
 * none that has one: its empty list was not taken for singular.
 * Mirrors: is_mergeable_anon_vma(), without fork()
 */
function takesAnonVma(other: u32, anonVma: u32): bool {
  return other == anonVma || anonVma == 0 || (other == 0 && ctl.profile == PROFILE_6_16);
}

/** Whether `lower` and `upper` touch and show one object without a break. */
function isContinued(lower: Vma, upper: Vma): bool {
  return (
    lower.end == upper.start && lower.kind == upper.kind && lower.file == upper.file && lower.offset == upper.offset
  );
}

/**
 * Whether `vma`, given `prot` and `flags`, may become one with its neighbour `other`; `isLower`: other lies below.
 * Mirrors: can_vma_merge_left(), can_vma_merge_right()
 */
export function canMerge(other: Vma, vma: Vma, isLower: bool, prot: u8, flags: u16): bool {
  if (isHugetlb(vma) || other.prot != prot || other.flags != flags) return false;
  if (!(isLower ? isContinued(other, vma) : isContinued(vma, other))) return false;
  return takesAnonVma(other.anonVma, vma.anonVma);
}

/**
 * Gives the area at `index` the anon_vma of its next or previous neighbour if they could become one, else a new one.
 * Mirrors: __anon_vma_prepare(), find_mergeable_anon_vma()
 */
export function prepareAnonVma(index: u32): void {
  const vma = vmaAt(index);
  if (vma.anonVma != 0) return;
  if (index + 1 < ctl.vmaCount) {
    const next = vmaAt(index + 1);
    if (next.anonVma != 0 && next.flags == vma.flags && isContinued(vma, next)) {
      vma.anonVma = next.anonVma;
      return;
    }
  }
  if (index > 0) {
    const previous = vmaAt(index - 1);
    if (previous.anonVma != 0 && previous.flags == vma.flags && isContinued(previous, vma)) {
      vma.anonVma = previous.anonVma;
      return;
    }
  }
  vma.anonVma = ++ctl.anonVmaNext;
}

/**
 * Joins a new area at `index` with neighbours it continues. Returns nothing of use: look the area up again.
 * Mirrors: vma_merge_new_range()
 */
export function joinNewVma(index: u32): void {
  const vma = vmaAt(index);
  let joinsLower: bool = false;
  if (index > 0) joinsLower = canMerge(vmaAt(index - 1), vma, true, vma.prot, vma.flags);
  let joinsUpper: bool = false;
  if (index + 1 < ctl.vmaCount) joinsUpper = canMerge(vmaAt(index + 1), vma, false, vma.prot, vma.flags);
  if (joinsLower && joinsUpper && !anonVmaCompatible(vmaAt(index - 1).anonVma, vmaAt(index + 1).anonVma)) {
    joinsUpper = false;
  }
  if (joinsUpper) {
    const upper = vmaAt(index + 1);
    vma.end = upper.end;
    if (vma.anonVma == 0) vma.anonVma = upper.anonVma;
    removeVmas(index + 1, 1);
  }
  if (joinsLower) {
    const lower = vmaAt(index - 1);
    lower.end = vma.end;
    if (lower.anonVma == 0) lower.anonVma = vma.anonVma;
    removeVmas(index, 1);
  }
}
