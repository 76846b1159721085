// The memslot table: lookup by id, gfn and hva. A record's place follows from its address space and id; two orders a
// space list the slots by gfn and by hva.
// Mirrors: struct kvm_memory_slot, struct kvm_memslots (include/linux/kvm_host.h)

import { ctl } from './control';
import { pagesOf } from './entry';
import { MEMSLOT_BYTES, MEMSLOTS_BASE, SLOT_ORDER_BASE } from './layout';
import { treeFlags } from './page_table';

export const MEM_LOG_DIRTY_PAGES: u32 = 1;
export const MEM_READONLY: u32 = 2;
export const MEM_GUEST_MEMFD: u32 = 4;

// Memslot, 128 bytes.
//
//   0          8          16         24         32     36     40      44     48     52        56         60
//   ├──────────┼──────────┼──────────┼──────────┼──────┼──────┼───────┼──────┼──────┼─────────┼──────────┼───
//   │ baseGfn  │ npages   │ hva      │ gmemPgoff│ id   │ asId │ flags │ used │ gmem │ invalid │ hasDirty │
//   └──────────┴──────────┴──────────┴──────────┴──────┴──────┴───────┴──────┴──────┴─────────┴──────────┴───
//   64: dirty   80: mixed2M   96: mixed1G   (tree entries; keys: page of the slot, gfn >> 9, gfn >> 18)
//   gmem: index of the bound file + 1; 0 = none or closed.
@unmanaged
export class Memslot {
  baseGfn: u64;
  npages: u64;
  hva: u64;
  gmemPgoff: u64;
  id: u32;
  asId: u32;
  flags: u32;
  used: u32;
  gmem: u32;
  invalid: u32;
  hasDirty: u32;
  pad0: u32;
  dirtyLo: u64;
  dirtyHi: u64;
  mixed2mLo: u64;
  mixed2mHi: u64;
  mixed1gLo: u64;
  mixed1gHi: u64;
  pad1: u64;
  pad2: u64;
}
if (offsetof<Memslot>() != 128) ERROR('Memslot is no longer 128 bytes: redraw it');

/** Levels of the entries of a slot's trees. */
export const DIRTY_LEVEL: i32 = 5;
export const MIXED_2M_LEVEL: i32 = 6;
export const MIXED_1G_LEVEL: i32 = 5;

export function memslotAt(asId: u32, id: u32): Memslot {
  return changetype<Memslot>(MEMSLOTS_BASE + <usize>((asId << 15) | id) * MEMSLOT_BYTES);
}
export function dirtyTree(slot: Memslot): usize {
  return changetype<usize>(slot) + offsetof<Memslot>('dirtyLo');
}
export function mixedTree(slot: Memslot, level: i32): usize {
  return changetype<usize>(slot) + (level == 2 ? offsetof<Memslot>('mixed2mLo') : offsetof<Memslot>('mixed1gLo'));
}
export function endGfnOf(slot: Memslot): u64 {
  return slot.baseGfn + slot.npages;
}
export function endHvaOf(slot: Memslot): u64 {
  return slot.hva + (slot.npages << 12);
}

export function slotCount(asId: u32): u32 {
  return asId == 0 ? ctl.slotCount0 : ctl.slotCount1;
}
function setSlotCount(asId: u32, slots: u32): void {
  if (asId == 0) ctl.slotCount0 = slots;
  else ctl.slotCount1 = slots;
}

export const BY_GFN: u32 = 0;
export const BY_HVA: u32 = 1;
function orderPtr(asId: u32, order: u32, place: u32): usize {
  return SLOT_ORDER_BASE + (((<usize>(asId * 2 + order)) << 15) + <usize>place) * 4;
}
/** The slot at `place` in an order of `asId`. */
export function slotAtPlace(asId: u32, order: u32, place: u32): Memslot {
  return memslotAt(asId, load<u32>(orderPtr(asId, order, place)));
}
function sortKey(slot: Memslot, order: u32): u64 {
  return order == BY_GFN ? slot.baseGfn : slot.hva;
}

/** The first place whose slot ends beyond `gfn`. Slots of one space do not overlap in gfns. */
export function firstPlaceByGfn(asId: u32, gfn: u64): u32 {
  let low: u32 = 0;
  let high = slotCount(asId);
  while (low < high) {
    const middle = (low + high) >> 1;
    if (endGfnOf(slotAtPlace(asId, BY_GFN, middle)) <= gfn) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Where gfnToMemslot() last found a slot: looked at first, and never trusted. */
let lastPlace: u32 = 0;

/** The slot that holds `gfn`; null if none. Mirrors: gfn_to_memslot(), try_get_memslot() */
export function gfnToMemslot(asId: u32, gfn: u64): Memslot | null {
  if (lastPlace < slotCount(asId)) {
    const slot = slotAtPlace(asId, BY_GFN, lastPlace);
    if (gfn - slot.baseGfn < slot.npages) return slot;
  }
  return searchMemslots(asId, gfn);
}
function searchMemslots(asId: u32, gfn: u64): Memslot | null {
  const place = firstPlaceByGfn(asId, gfn);
  if (place == slotCount(asId)) return null;
  const slot = slotAtPlace(asId, BY_GFN, place);
  if (slot.baseGfn > gfn) return null;
  lastPlace = place;
  return slot;
}

/** Whether a slot of `asId` other than `exceptId` meets [startGfn, endGfn). Mirrors: kvm_check_memslot_overlap() */
export function slotOverlaps(asId: u32, exceptId: u32, startGfn: u64, endGfn: u64): bool {
  for (let place = firstPlaceByGfn(asId, startGfn); place < slotCount(asId); place++) {
    const slot = slotAtPlace(asId, BY_GFN, place);
    if (slot.baseGfn >= endGfn) return false;
    if (slot.id != exceptId) return true;
  }
  return false;
}

/** How many slots of all address spaces, itself included, meet the host memory of `slot`. */
function slotsAtHva(slot: Memslot): u32 {
  let met: u32 = 0;
  for (let asId: u32 = 0; asId < ctl.asCount; asId++) {
    for (let place: u32 = 0; place < slotCount(asId); place++) {
      const other = slotAtPlace(asId, BY_HVA, place);
      if (other.hva >= endHvaOf(slot)) break;
      if (endHvaOf(other) > slot.hva) met++;
    }
  }
  return met;
}

/** Enters a slot into both orders. Among equal hvas the later slot comes after. */
export function linkSlot(slot: Memslot): void {
  const asId = slot.asId;
  const slots = slotCount(asId);
  for (let order: u32 = 0; order < 2; order++) {
    const key = sortKey(slot, order);
    let place = slots;
    while (place > 0 && sortKey(slotAtPlace(asId, order, place - 1), order) > key) {
      store<u32>(orderPtr(asId, order, place), load<u32>(orderPtr(asId, order, place - 1)));
      place--;
    }
    store<u32>(orderPtr(asId, order, place), slot.id);
  }
  setSlotCount(asId, slots + 1);
  ctl.hvaAliases = max(ctl.hvaAliases, slotsAtHva(slot));
  const reach = ((asId << 15) | slot.id) + 1;
  if (reach > ctl.memslotHighWater) ctl.memslotHighWater = reach;
}

export function unlinkSlot(slot: Memslot): void {
  const asId = slot.asId;
  const slots = slotCount(asId);
  for (let order: u32 = 0; order < 2; order++) {
    let place: u32 = 0;
    while (load<u32>(orderPtr(asId, order, place)) != slot.id) place++;
    for (; place + 1 < slots; place++) {
      store<u32>(orderPtr(asId, order, place), load<u32>(orderPtr(asId, order, place + 1)));
    }
  }
  setSlotCount(asId, slots - 1);
}

// --- Huge pages: what a slot's shape and mixed attributes forbid -------------------------------------------------------

/** Whether the region of `level` that holds `gfn` has both private and shared gfns. Mirrors: hugepage_test_mixed() */
export function isMixed(slot: Memslot, level: i32, gfn: u64): bool {
  const key = gfn >> (level == 2 ? 9 : 18);
  return treeFlags(mixedTree(slot, level), level == 2 ? MIXED_2M_LEVEL : MIXED_1G_LEVEL, key) != 0;
}

/** Whether the slot's ends or its offset to the hva forbid `level` at `gfn`. Mirrors: kvm_alloc_memslot_metadata() */
export function shapeForbids(slot: Memslot, level: i32, gfn: u64): bool {
  const pages = pagesOf(level);
  const region = gfn & ~(pages - 1);
  if (region < slot.baseGfn || region + pages > endGfnOf(slot)) return true;
  return ((slot.baseGfn ^ (slot.hva >> 12)) & (pages - 1)) != 0;
}
