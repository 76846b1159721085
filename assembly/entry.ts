// An entry of a tree (page_table.ts): its 16 bytes, and what is read from them or written to them alone.
//
// An entry at level L covers 512^(L-1) keys.
//
//   0            4            8            12           16
//   ├────────────┼────────────┼────────────┼────────────┤
//   │ descriptor │ block      │ counts     │ block2     │
//   └────────────┴────────────┴────────────┴────────────┘
//   descriptor: tag 0-2 │ leaf level 3-6 │ flags 8-15 │ planes 16-23 │ allocated planes 24-31
//   counts:     present 0-9 │ accessed 10-19 │ side records 20-29 │ marks 30, 31
//
//   EMPTY    nothing below, no table linked
//   LEAF     one leaf of this entry's own level (2 or above)
//   TABLE    an upper table: 512 entries in `block`
//   LT       a leaf table (level-2 entries only): `flags` hold for every present key, except the bits in `planes`,
//            whose 512 values are 64-byte planes in `block`, and in `block2` from the fifth on
//   UNIFORM  tables linked all the way down to `leaf level`, whose entries are all alike: `flags`, or nothing
//   CHUNKS   512 leaf tables (level-3 entries only), each full of keys with `flags` or empty: a plane in `block` has a bit
//            for each, `present` counts the full ones, of which there are 1 to 511. What 2 MiB zaps leave of a UNIFORM GiB
//
// `planes` are the bits that differ, `allocated` those with a place in a block: a plane that turns uniform keeps its
// place, so that aging and write-protecting a whole table touch the entry alone. One plane has a block of 64 bytes, two to
// four have one of 256, more have two: bits 0-3 in `block`, 4-7 in `block2`, each in a place of its own. In a block that
// all share, bits 0-3 have their own places too, and `block2` holds those of bits 4-7, two bits for each.

import { ctl } from './control';

export const ENTRY_BYTES: usize = 16;
export const EMPTY: u32 = 0;
export const LEAF: u32 = 1;
export const TABLE: u32 = 2;
export const LT: u32 = 3;
export const UNIFORM: u32 = 4;
export const CHUNKS: u32 = 5;
/** What the descriptors of CHUNKS, and of UNIFORM entries that may become such, hold in their lowest 7 bits. */
export const CHUNKS_OF_4K: u32 = CHUNKS | (1 << 3);
export const UNIFORM_OF_4K: u32 = UNIFORM | (1 << 3);

/** Bit 2 is the one whose present keys are counted in the entry: A of an spte. */
export const COUNTED_BIT: u32 = 4;
export const COUNTED_SHIFT: u32 = 2;

/** Set in `counts` by the owner: an entry so marked never folds into its parent (an nx-disallowed table). */
export const MARK: u32 = 1 << 30;
/** A mark of its own beside MARK: the table stands where a huge page would. */
export const MARK_TRACKED: u32 = 1 << 31;
const SIDE_ONE: u32 = 1 << 20;
export const SIDE_MASK: u32 = 0x3ff << 20;
/** What a leaf table keeps in its counts, whatever becomes of its keys; with any of it, it never folds. */
export const KEPT: u32 = SIDE_MASK | MARK | MARK_TRACKED;

/** Keys covered by one entry of `level`. */
export function pagesOf(level: i32): u64 {
  return (<u64>1) << (9 * (level - 1));
}

export function tagOf(entryPtr: usize): u32 {
  return load<u32>(entryPtr) & 7;
}
export function flagsOf(entryPtr: usize): u32 {
  return (load<u32>(entryPtr) >> 8) & 255;
}
export function leafLevelOf(entryPtr: usize): i32 {
  return (load<u32>(entryPtr) >> 3) & 15;
}
/** The bits that differ within a leaf table. */
export function planesOf(entryPtr: usize): u32 {
  return (load<u32>(entryPtr) >> 16) & 255;
}
/** Present keys of a leaf table. */
export function presentCount(entryPtr: usize): u32 {
  return load<u32>(entryPtr, 8) & 0x3ff;
}
export function sideCount(entryPtr: usize): u32 {
  return (load<u32>(entryPtr, 8) >> 20) & 0x3ff;
}
export function addSide(entryPtr: usize): void {
  store<u32>(entryPtr, load<u32>(entryPtr, 8) + SIDE_ONE, 8);
}
export function dropSide(entryPtr: usize): void {
  store<u32>(entryPtr, load<u32>(entryPtr, 8) - SIDE_ONE, 8);
}
export function isMarked(entryPtr: usize): bool {
  return (load<u32>(entryPtr, 8) & MARK) != 0;
}
export function isTracked(entryPtr: usize): bool {
  return (load<u32>(entryPtr, 8) & MARK_TRACKED) != 0;
}
export function setMark(entryPtr: usize, mark: u32): void {
  store<u32>(entryPtr, load<u32>(entryPtr, 8) | mark, 8);
}
export function clearMarks(entryPtr: usize): void {
  store<u32>(entryPtr, load<u32>(entryPtr, 8) & ~(MARK | MARK_TRACKED), 8);
}

export function descriptor(tag: u32, leafLevel: i32, flags: u32): u32 {
  return tag | ((<u32>leafLevel) << 3) | (flags << 8);
}

/** Writes an entry that owns no block; what was there must have been freed. Keeps nothing of the old counts. */
export function setEmpty(entryPtr: usize): void {
  store<u64>(entryPtr, 0);
  store<u64>(entryPtr, 0, 8);
}
export function setLeaf(entryPtr: usize, level: i32, flags: u32): void {
  store<u64>(entryPtr, descriptor(LEAF, level, flags));
  store<u64>(entryPtr, 0, 8);
}
/** Tables down to `leafLevel` linked below an entry of `level`, all entries there alike. */
export function setUniform(entryPtr: usize, level: i32, leafLevel: i32, flags: u32): void {
  if (level == 2) {
    store<u64>(entryPtr, descriptor(LT, 1, flags));
    store<u64>(entryPtr, flags & 1 ? 512 | (flags & COUNTED_BIT ? 512 << 10 : 0) : 0, 8);
  } else {
    store<u64>(entryPtr, descriptor(UNIFORM, leafLevel, flags));
    store<u64>(entryPtr, 0, 8);
  }
}

export function blockPtr(block: u32): usize {
  return <usize>ctl.arenaBase + ((<usize>block) << 6);
}

/** Entry `index` of the upper table that a TABLE entry links. */
export function childPtr(entryPtr: usize, index: u32): usize {
  return blockPtr(load<u32>(entryPtr, 4)) + ((<usize>index) << 4);
}
export function indexAt(key: u64, level: i32): u32 {
  return <u32>(key >> (9 * (level - 1))) & 511;
}

/** Whether `allocated` planes are one alone, in a block of 64 bytes, or none. */
export function isSingle(allocated: u32): bool {
  return (allocated & (allocated - 1)) == 0;
}
