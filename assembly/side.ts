// Sparse records of entries that carry more than flags: MMIO sptes with their generation, FROZEN sptes, and what is
// BLOCKED in the S-EPT with its epoch.
//
// Open addressing with linear probing at SIDE_BASE; 16 bytes a record. A leaf table counts those of
// its 4K sptes (entry.ts), so that loops over ordinary leaves never look here.
//
//   0          8            16
//   ├──────────┼────────────┤
//   │ key + 1  │ spte code, │   key = root index << 48 | gfn; 0 marks a free record
//   │          │ or epoch   │
//   └──────────┴────────────┘
//
// Mirrors: arch/x86/kvm/mmu/spte.h (the generation of an MMIO spte, FROZEN_SPTE)

import { ctl } from './control';
import { SIDE_BASE, SIDE_BYTES, SIDE_CAPACITY } from './layout';

/** 2^64 divided by the golden ratio, odd: Fibonacci hashing. */
const GOLDEN_RATIO: u64 = ((<u64>0x9e3779b9) << 32) | 0x7f4a7c15;

const MASK: u32 = SIDE_CAPACITY - 1;

function home(key: u64): u32 {
  return <u32>((key * GOLDEN_RATIO) >> 40) & MASK;
}
function at(index: u32): usize {
  return SIDE_BASE + <usize>index * SIDE_BYTES;
}
export function sideKey(rootIndex: u32, gfn: u64): u64 {
  return ((<u64>rootIndex) << 48) | gfn;
}

/** Whether one more record fits: the table is kept at most three quarters full. */
export function sideHasRoom(): bool {
  return ctl.sideCount < (SIDE_CAPACITY >> 2) * 3;
}

/** The spte code of a record, 0 if there is none. */
export function sideGet(key: u64): u32 {
  return ctl.sideCount == 0 ? 0 : <u32>sideGetWide(key);
}

/** All 64 bits of a record, 0 if there is none. */
export function sideGetWide(key: u64): u64 {
  if (ctl.sideCount == 0) return 0;
  let index = home(key);
  while (load<u64>(at(index)) != key + 1) {
    if (load<u64>(at(index)) == 0) return 0;
    index = (index + 1) & MASK;
  }
  return load<u64>(at(index), 8);
}

/** Writes a record. Returns whether it is a new one. Requires: sideHasRoom(). */
export function sideSet(key: u64, code: u32): bool {
  return sideSetWide(key, <u64>code);
}
export function sideSetWide(key: u64, value: u64): bool {
  let index = home(key);
  while (load<u64>(at(index)) != 0 && load<u64>(at(index)) != key + 1) index = (index + 1) & MASK;
  const isNew = load<u64>(at(index)) == 0;
  store<u64>(at(index), key + 1);
  store<u64>(at(index), value, 8);
  if (isNew) ctl.sideCount++;
  return isNew;
}

/** Deletes a record and closes the gap it leaves in its probe chain. */
export function sideDelete(key: u64): void {
  let index = home(key);
  while (load<u64>(at(index)) != key + 1) {
    if (load<u64>(at(index)) == 0) return;
    index = (index + 1) & MASK;
  }
  ctl.sideCount--;
  let next = (index + 1) & MASK;
  while (load<u64>(at(next)) != 0) {
    const wanted = home(load<u64>(at(next)) - 1);
    if (((next - wanted) & MASK) >= ((next - index) & MASK)) {
      memory.copy(at(index), at(next), SIDE_BYTES);
      index = next;
    }
    next = (next + 1) & MASK;
  }
  store<u64>(at(index), 0);
  store<u64>(at(index), 0, 8);
}
