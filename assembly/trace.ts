// Events written to a ring of 16-byte records, in the kernel's order. Off unless a capacity was given.
//
//   change of sptes (a run of alike entries):      any other event:
//   0            4            8            16      0            4            8                 16
//   ├────────────┼────────────┼─────┬──────┤       ├────────────┼────────────┼─────────────────┤
//   │type lv old │ new gfnHi  │gfnLo│ count│       │type n small│ word       │ quad            │ + n records of two quads
//   └────────────┴────────────┴─────┴──────┘       └────────────┴────────────┴─────────────────┘
//   type 8 bits; level 4, address space 1, mirror 1, vCPU's own 1; old and new 16 each; gfn 48 bits.
//
// A full ring drops what comes and counts it: what is read is always a prefix without holes.
// Mirrors: arch/x86/kvm/mmu/mmutrace.h (kvm_tdp_mmu_spte_changed, kvm_mmu_split_huge_page, mark_mmio_spte),
// include/trace/events/kvm.h (kvm_unmap_hva_range, kvm_age_hva, kvm_test_age_hva). The other events are calls, as a
// kprobe shows them.

import { ctl } from './control';
import { RING_BASE, TRACE_RECORD_BYTES } from './layout';

export const EV_SPTE: u32 = 1;
export const EV_UNMAP_GFN_RANGE: u32 = 10;
export const EV_AGE_GFN: u32 = 11;
export const EV_TEST_AGE_GFN: u32 = 12;
export const EV_SET_SPTE_GFN: u32 = 13;
export const EV_GFN_RANGE_RET: u32 = 14;
export const EV_PRE_ATTR: u32 = 15;
export const EV_POST_ATTR: u32 = 16;
export const EV_UNMAP_HVA: u32 = 20;
export const EV_AGE_HVA: u32 = 21;
export const EV_TEST_AGE_HVA: u32 = 22;
export const EV_INV_BEGIN: u32 = 23;
export const EV_INV_ADD: u32 = 24;
export const EV_INV_END: u32 = 25;
export const EV_FLUSH: u32 = 26;
export const EV_FLUSH_RANGE: u32 = 27;
export const EV_REQ: u32 = 28;
export const EV_ZAP_LEAFS: u32 = 29;
export const EV_ZAP_LEAFS_RET: u32 = 30;
export const EV_ZAP_ROOT: u32 = 31;
export const EV_ZAP_ALL: u32 = 32;
export const EV_INV_ROOTS: u32 = 33;
export const EV_ZAP_INV_ROOTS: u32 = 34;
export const EV_ZAP_ALL_FAST: u32 = 35;
export const EV_SPLIT_HUGE: u32 = 36;
export const EV_SPLIT_HUGE_PAGE: u32 = 37;
export const EV_WRPROT_SLOT: u32 = 38;
export const EV_CLEAR_DIRTY_MASK: u32 = 39;
export const EV_WRITE_PROTECT_GFN: u32 = 40;
export const EV_ZAP_COLLAPSIBLE: u32 = 41;
export const EV_SET_MEMSLOT: u32 = 42;
export const EV_SWAP_MEMSLOTS: u32 = 43;
export const EV_FLUSH_SHADOW_MEMSLOT: u32 = 44;
export const EV_COMMIT_REGION: u32 = 45;
export const EV_MMIO_GEN: u32 = 46;
export const EV_GMEM_INVAL_BEGIN: u32 = 47;
export const EV_FLUSH_SHADOW_ALL: u32 = 48;
export const EV_RECLAIMED: u32 = 49;
export const EV_MARK_MMIO_SPTE: u32 = 50;
export const EV_ZAP_SP: u32 = 51;
/** Calls of one leaf function of the TDX module that ended alike. */
export const EV_SEAMCALL: u32 = 60;
/** Leaves removed, each by the whole sequence of spec 7.4, straight after the mirror's own change. */
export const EV_SEPT_REMOVED: u32 = 61;
/** A broadcast that takes every vCPU out of the guest. */
export const EV_KICK: u32 = 62;
export const EV_RMP_MAKE_PRIVATE: u32 = 80;
export const EV_RMP_MAKE_SHARED: u32 = 81;
export const EV_PSMASH: u32 = 82;
export const EV_RMP_FAULT: u32 = 83;
export const EV_HYPERCALL_EXIT: u32 = 84;

// What an spte is, in 16 bits: class 0-2; of a leaf, bits 1-7 of its flags at 3-9; of MMIO, its generation at 3-15.
export const SPTE_NONPRESENT: u32 = 0;
export const SPTE_MMIO: u32 = 1;
export const SPTE_FROZEN: u32 = 2;
export const SPTE_TABLE: u32 = 3;
export const SPTE_LEAF: u32 = 4;

export function codeOfFlags(flags: u32): u32 {
  // SPTE_NONPRESENT is 0.
  return (SPTE_LEAF | ((flags >> 1) << 3)) & -(flags & 1);
}
export function codeOfMmio(generation: u32): u32 {
  return SPTE_MMIO | ((generation & 0x1fff) << 3);
}

function room(records: u32): usize {
  const used = ctl.traceCount;
  if (used + records > ctl.ringRecords || ctl.traceDropped != 0) {
    ctl.traceDropped++;
    return 0;
  }
  ctl.traceCount = used + records;
  return RING_BASE + <usize>used * TRACE_RECORD_BYTES;
}

/** 1 while a fault installs what it found, 0 while changes come from an operation. */
export let byVcpu: u32 = 0;
export function setByVcpu(on: bool): void {
  byVcpu = on ? 1 : 0;
}

/**
 * Where the next `records` records go, for a writer of many that all fit: traceAdvance() takes the end of what it wrote.
 * 0 if they do not all fit.
 */
export function traceRoom(records: u32): usize {
  if (ctl.traceDropped != 0 || ctl.traceCount + records > ctl.ringRecords) return 0;
  return RING_BASE + <usize>ctl.traceCount * TRACE_RECORD_BYTES;
}
export function traceAdvance(endPtr: usize): void {
  ctl.traceCount = <u32>((endPtr - RING_BASE) / TRACE_RECORD_BYTES);
}

/** The first quad of a record of sptes, its codes apart. */
export function spteHead(asId: u32, mirror: u32, level: i32, gfn: u64): u64 {
  const low = EV_SPTE | ((<u32>level) << 8) | (asId << 12) | (mirror << 13) | (byVcpu << 14);
  return <u64>low | ((gfn >> 32) << 48);
}

/** Writes a run's record at `ptr`, `head` with its codes. Returns where the next one goes. */
export function putSptes(ptr: usize, head: u64, gfn: u32, entries: u32): usize {
  store<u64>(ptr, head);
  store<u64>(ptr, <u64>gfn | ((<u64>entries) << 32), 8);
  return ptr + TRACE_RECORD_BYTES;
}

/** A run of `entries` sptes of `level` from `gfn` on changed from `oldCode` to `newCode`. */
export function traceSptes(
  asId: u32,
  mirror: u32,
  level: i32,
  gfn: u64,
  oldCode: u32,
  newCode: u32,
  entries: u32,
): void {
  const ptr = room(1);
  if (ptr == 0) return;
  putSptes(ptr, spteHead(asId, mirror, level, gfn) | <u64>(oldCode << 16) | ((<u64>newCode) << 32), <u32>gfn, entries);
}

export function trace(type: u32, small: u32, word: u32, quad: u64): void {
  if (ctl.traceOn == 0) return;
  const ptr = room(1);
  if (ptr == 0) return;
  store<u32>(ptr, type | (small << 16));
  store<u32>(ptr, word, 4);
  store<u64>(ptr, quad, 8);
}

export function trace2(type: u32, small: u32, word: u32, quad: u64, quad2: u64, quad3: u64): void {
  if (ctl.traceOn == 0) return;
  const ptr = room(2);
  if (ptr == 0) return;
  store<u32>(ptr, type | (1 << 8) | (small << 16));
  store<u32>(ptr, word, 4);
  store<u64>(ptr, quad, 8);
  store<u64>(ptr, quad2, 16);
  store<u64>(ptr, quad3, 24);
}
