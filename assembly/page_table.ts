// Trees of entries: upper tables, uniform subtrees, and what is read and written by key. Knows no KVM.
//
// A tree maps keys (gfns, hva pages, file pages) to 8 flag bits. Bit 0 means present; the others count only where it
// is set. The page tables of the guest, the host's page table, attributes, file residency, page contents, mixed
// regions and dirty bitmaps are all trees. A tree is one entry (entry.ts), held by its owner.
//
// Left out: pfns. They follow from the backing (host_mm.ts, guest_memfd.ts).

import { allocateUpper, release } from './blocks';
import { chunkClear, chunkFlags, chunkRunEnd, chunksClear, chunksCount, chunksModify, takesChunks } from './chunks';
import { GUEST_PATH, HOST_PATH } from './control';
import {
  blockPtr,
  CHUNKS,
  CHUNKS_OF_4K,
  childPtr,
  EMPTY,
  ENTRY_BYTES,
  flagsOf,
  indexAt,
  isMarked,
  KEPT,
  LEAF,
  LT,
  leafLevelOf,
  pagesOf,
  presentCount,
  setEmpty,
  setLeaf,
  setUniform,
  TABLE,
  tagOf,
  UNIFORM,
  UNIFORM_OF_4K,
} from './entry';
import { CLASS_PLANE, CLASS_UPPER } from './layout';
import {
  ltClear,
  ltClearMasked,
  ltCount,
  ltFlags,
  ltModify,
  ltRunEnd,
  ltSet,
  releasePlanes,
  valueWord,
  wordPtr,
} from './leaf_table';

// --- Upper tables ----------------------------------------------------------------------------------------------------

/** Links an upper table; what its entries hold is for the caller to write. */
function linkBlock(entryPtr: usize): usize {
  const block = allocateUpper();
  store<u32>(entryPtr, TABLE);
  store<u32>(entryPtr, block, 4);
  store<u64>(entryPtr, 0, 8);
  return blockPtr(block);
}

/** Links an upper table of 512 empty entries. */
export function linkTable(entryPtr: usize): void {
  memory.fill(linkBlock(entryPtr), 0, 8192);
}

/** Gives a UNIFORM entry of `level`, or CHUNKS, a table of its own, one level of entries deep. */
export function expand(entryPtr: usize, level: i32): void {
  if (tagOf(entryPtr) == CHUNKS) {
    expandChunks(entryPtr);
    return;
  }
  const leafLevel = leafLevelOf(entryPtr);
  const flags = flagsOf(entryPtr);
  const childLevel = level - 1;
  const first = linkBlock(entryPtr);
  if (leafLevel != childLevel) setUniform(first, childLevel, leafLevel, flags);
  else if (flags & 1) setLeaf(first, childLevel, flags);
  else setEmpty(first);
  const low = load<u64>(first);
  const high = load<u64>(first, 8);
  for (let at: usize = ENTRY_BYTES; at < 512; at += ENTRY_BYTES) {
    store<u64>(first + at, low);
    store<u64>(first + at, high, 8);
  }
  // Doubling copies: 512 bytes, 1,024, 2,048, 4,096.
  for (let filled: usize = 512; filled < 8192; filled <<= 1) memory.copy(first + filled, first, filled);
}

function expandChunks(entryPtr: usize): void {
  const block = load<u32>(entryPtr, 4);
  const flags = flagsOf(entryPtr);
  const first = linkBlock(entryPtr);
  for (let index: usize = 0; index < 512; index++) {
    const word = load<u64>(blockPtr(block) + ((index >> 6) << 3));
    setUniform(first + (index << 4), 2, 1, (word >> (<u64>index & 63)) & 1 ? flags : 0);
  }
  release(CLASS_PLANE, block);
}

/** Folds a TABLE entry of `level` whose 512 entries are alike into a UNIFORM one. The child of `key` has just been written. */
export function fold(entryPtr: usize, level: i32, key: u64): void {
  if (!mayFold(entryPtr, indexAt(key, level - 1))) return;
  const first = childPtr(entryPtr, 0);
  const desc = load<u32>(first);
  const tag = desc & 7;
  if (tag == TABLE || desc >> 16 != 0 || isMarked(entryPtr)) return;
  const counts = load<u32>(first, 8);
  if ((counts & KEPT) != 0) return;
  if (load<u32>(first + 511 * ENTRY_BYTES) != desc) return;
  for (let at: usize = ENTRY_BYTES; at < 8192; at += ENTRY_BYTES) {
    if (load<u32>(first + at) != desc || (load<u32>(first + at, 8) & KEPT) != 0) return;
  }
  releaseUpper(load<u32>(entryPtr, 4));
  const flags = (desc >> 8) & 255;
  const leafLevel = tag == EMPTY || tag == LEAF ? level - 1 : tag == LT ? 1 : <i32>((desc >> 3) & 15);
  setUniform(entryPtr, level, leafLevel, tag == EMPTY ? 0 : flags);
}

/**
 * fold() of a TABLE entry of level 3 whose leaf tables ltReleaseRun() released, all of them, with nothing to keep. Returns
 * whether it may.
 */
export function foldReleased(entryPtr: usize): bool {
  if (isMarked(entryPtr)) return false;
  releaseUpper(load<u32>(entryPtr, 4));
  setUniform(entryPtr, 3, 1, 0);
  return true;
}

/**
 * Whether a fold is worth a try: the entries that share 64 bytes of memory with child `index` are like it. If the child has
 * just been written this costs no cache miss, where the other ends of its table cost three.
 */
function mayFold(entryPtr: usize, index: u32): bool {
  const line = childPtr(entryPtr, index & ~3);
  const desc = load<u32>(line);
  return (
    load<u32>(line, ENTRY_BYTES) == desc &&
    load<u32>(line, 2 * ENTRY_BYTES) == desc &&
    load<u32>(line, 3 * ENTRY_BYTES) == desc
  );
}

/** Tables linked below an entry of `level` by a UNIFORM subtree down to `leafLevel`. */
export function uniformTables(level: i32, leafLevel: i32): u64 {
  let tables: u64 = 0;
  for (let at = leafLevel; at < level; at++) tables += (<u64>1) << (9 * (level - 1 - at));
  return tables;
}

/** Tables linked below an entry, the one it links included. */
function tablesBelow(entryPtr: usize, level: i32): u64 {
  const tag = tagOf(entryPtr);
  if (tag == LT) return 1;
  if (tag >= UNIFORM) return uniformTables(level, leafLevelOf(entryPtr));
  if (tag != TABLE) return 0;
  let tables: u64 = 1;
  const first = childPtr(entryPtr, 0);
  for (let at: usize = 0; at < 8192; at += ENTRY_BYTES) {
    const child = first + at;
    const childTag = load<u32>(child) & 7;
    if (childTag == LT) tables++;
    else if (childTag > LT || childTag == TABLE) tables += tablesBelow(child, level - 1);
  }
  return tables;
}

/** Frees everything below an entry and leaves it EMPTY. */
export function freeSubtree(entryPtr: usize, level: i32): void {
  const tag = tagOf(entryPtr);
  if (tag == LT || tag == CHUNKS) {
    releasePlanes(entryPtr);
  } else if (tag == TABLE) {
    const first = childPtr(entryPtr, 0);
    for (let at: usize = 0; at < 8192; at += ENTRY_BYTES) {
      const childTag = load<u32>(first + at) & 7;
      if (childTag == LT || childTag == TABLE || childTag == CHUNKS) freeSubtree(first + at, level - 1);
    }
    releaseUpper(load<u32>(entryPtr, 4));
  }
  setEmpty(entryPtr);
}

// --- Trees: reading --------------------------------------------------------------------------------------------------

/** What treeAt() found: the flags, the tag and level of the entry that answers, and the end of what it says alike. */
export let atFlags: u32 = 0;
export let atTag: u32 = 0;
export let atLevel: i32 = 0;
export let atEnd: u64 = 0;
/** The stored entry that answered; of a UNIFORM answer or one of CHUNKS, the subtree's. */
export let atEntry: usize = 0;

/**
 * Reads the tree at `key`. atLevel is the level of the leaf or absent entry that a walk by real tables would end at;
 * atEnd the end of the stored run of alike entries from there.
 */
export function treeAt(entryPtr: usize, level: i32, key: u64): void {
  while (tagOf(entryPtr) == TABLE) {
    level--;
    entryPtr = childPtr(entryPtr, indexAt(key, level));
  }
  atEntry = entryPtr;
  const tag = tagOf(entryPtr);
  atTag = tag;
  const base = key & ~(pagesOf(level) - 1);
  if (tag == LT) {
    const index = <i32>(key & 511);
    atFlags = ltFlags(entryPtr, index);
    atLevel = 1;
    atEnd = base + <u64>ltRunEnd(entryPtr, index, 512);
    return;
  }
  if (tag == CHUNKS) {
    const chunk = indexAt(key, 2);
    atFlags = chunkFlags(entryPtr, chunk);
    atLevel = 1;
    atEnd = base + ((<u64>chunkRunEnd(entryPtr, chunk)) << 9);
    return;
  }
  atEnd = base + pagesOf(level);
  atFlags = flagsOf(entryPtr);
  if ((atFlags & 1) == 0) atFlags = 0;
  atLevel = tag == UNIFORM ? leafLevelOf(entryPtr) : level;
}

/** As treeAt(), without atEnd, which costs more than the rest. */
export function treeLook(entryPtr: usize, level: i32, key: u64): void {
  let desc = load<u32>(entryPtr);
  while ((desc & 7) == TABLE) {
    level--;
    entryPtr = childPtr(entryPtr, indexAt(key, level));
    desc = load<u32>(entryPtr);
  }
  const tag = desc & 7;
  atEntry = entryPtr;
  atTag = tag;
  if (tag == LT) {
    atFlags = ltFlags(entryPtr, <i32>(key & 511));
    atLevel = 1;
    return;
  }
  const flags = tag == CHUNKS ? chunkFlags(entryPtr, indexAt(key, 2)) : (desc >> 8) & 255;
  atFlags = flags & 1 ? flags : 0;
  atLevel = tag >= UNIFORM ? <i32>((desc >> 3) & 15) : level;
}

// Path, 24 bytes: the entry at which the last treeLookNear() of the path began, for the 512 keys around `key` << 9 in
// `tree`. The block that holds it stays where it is until an upper table is freed.
@unmanaged
class Path {
  tree: u32;
  entry: u32;
  key: u64;
  level: i32;
  pad: u32;
}
if (offsetof<Path>() != 24) ERROR('Path is no longer 24 bytes');

function isNear(path: Path, entryPtr: usize, key: u64): bool {
  return path.tree == <u32>entryPtr && path.key == key >> 9 && tagOf(path.entry) != TABLE;
}
function walkAnew(path: Path, entryPtr: usize, level: i32, key: u64): usize {
  path.tree = <u32>entryPtr;
  path.key = key >> 9;
  while (tagOf(entryPtr) == TABLE) {
    level--;
    entryPtr = childPtr(entryPtr, indexAt(key, level));
  }
  path.entry = <u32>entryPtr;
  path.level = level;
  return entryPtr;
}
/** The stored entry that answers for `key`; for one key after the other: `pathPtr` says what answered for the last. */
export function treeEntryNear(pathPtr: usize, entryPtr: usize, level: i32, key: u64): usize {
  const path = changetype<Path>(pathPtr);
  return isNear(path, entryPtr, key) ? <usize>path.entry : walkAnew(path, entryPtr, level, key);
}
/** As treeLook(), by treeEntryNear(). */
export function treeLookNear(pathPtr: usize, entryPtr: usize, level: i32, key: u64): void {
  const path = changetype<Path>(pathPtr);
  if (!isNear(path, entryPtr, key)) walkAnew(path, entryPtr, level, key);
  treeLook(path.entry, path.level, key);
}

/** Frees an upper table: what began in it begins at the root again. */
function releaseUpper(block: u32): void {
  changetype<Path>(GUEST_PATH).tree = 0;
  changetype<Path>(HOST_PATH).tree = 0;
  release(CLASS_UPPER, block);
}

/** The flags of `key`: 0 if absent. */
export function treeFlags(entryPtr: usize, level: i32, key: u64): u32 {
  while (tagOf(entryPtr) == TABLE) {
    level--;
    entryPtr = childPtr(entryPtr, indexAt(key, level));
  }
  return flagsIn(entryPtr, key);
}
/** The flags of `key` by the stored entry that answers for it: 0 if absent. */
export function flagsIn(entryPtr: usize, key: u64): u32 {
  const tag = tagOf(entryPtr);
  if (tag == LT) return ltFlags(entryPtr, <i32>(key & 511));
  if (tag == CHUNKS) return chunkFlags(entryPtr, indexAt(key, 2));
  const flags = flagsOf(entryPtr);
  return flags & 1 ? flags : 0;
}

/** The table of level-3 entries for `key`'s 512 GiB: its first entry; 0 if none is stored. */
export function levelThreeTable(entryPtr: usize, level: i32, key: u64): usize {
  while (tagOf(entryPtr) == TABLE) {
    if (level == 4) return childPtr(entryPtr, 0);
    level--;
    entryPtr = childPtr(entryPtr, indexAt(key, level));
  }
  return 0;
}

/** The leaf table that holds `key`; 0 if none is stored. */
export function leafTableAt(entryPtr: usize, level: i32, key: u64): usize {
  while (tagOf(entryPtr) == TABLE) {
    level--;
    entryPtr = childPtr(entryPtr, indexAt(key, level));
  }
  return tagOf(entryPtr) == LT ? entryPtr : 0;
}

/** Writes masks of the present keys of [key, key + 512) to `masks`. */
export function treeMasks(entryPtr: usize, level: i32, key: u64, masks: usize): void {
  const table = leafTableAt(entryPtr, level, key);
  const alike: u64 = table == 0 && treeFlags(entryPtr, level, key) != 0 ? ~(<u64>0) : 0;
  for (let word = 0; word < 8; word++) {
    store<u64>(masks + ((<usize>word) << 3), table != 0 ? valueWord(table, 0, word) : alike);
  }
}

/** End of the run of keys from `key`, below `limit`, that have the same flags, whatever stores them. */
export function treeRunEnd(entryPtr: usize, level: i32, key: u64, limit: u64): u64 {
  treeAt(entryPtr, level, key);
  const flags = atFlags;
  while (atEnd < limit) {
    const end = atEnd;
    treeAt(entryPtr, level, end);
    if (atFlags != flags) return end;
  }
  return limit;
}

/** How many keys of [start, end) are present with all of `need`. */
export function treeCount(entryPtr: usize, level: i32, start: u64, end: u64, need: u32): u64 {
  const tag = tagOf(entryPtr);
  if (tag == EMPTY || start >= end) return 0;
  if (tag == LT) return <u64>ltCount(entryPtr, <i32>(start & 511), <i32>((end - 1) & 511) + 1, need);
  if (tag != TABLE) {
    if ((flagsOf(entryPtr) & need) != need) return 0;
    return tag == CHUNKS ? chunksCount(entryPtr, start, end) : end - start;
  }
  const childLevel = level - 1;
  const pages = pagesOf(childLevel);
  let total: u64 = 0;
  let at = start;
  while (at < end) {
    const next = min((at & ~(pages - 1)) + pages, end);
    total += treeCount(childPtr(entryPtr, indexAt(at, childLevel)), childLevel, at, next, need);
    at = next;
  }
  return total;
}

/**
 * Whether every key of [start, end) is present (`present`), or none is. Stops at the first that differs. Requires: the
 * tree is written by treeSet() alone with one value of flags, so that tables of alike entries have been folded.
 */
export function treeHolds(entryPtr: usize, level: i32, start: u64, end: u64, present: bool): bool {
  while (tagOf(entryPtr) == TABLE) {
    // A table that is still there is not alike.
    if (end - start == pagesOf(level)) return false;
    if ((start ^ (end - 1)) >> (9 * (level - 2)) != 0) break;
    level--;
    entryPtr = childPtr(entryPtr, indexAt(start, level));
  }
  const tag = tagOf(entryPtr);
  if (tag == LT) {
    const from = <i32>(start & 511);
    const to = <i32>((end - 1) & 511) + 1;
    if (to - from == 1) return ((ltFlags(entryPtr, from) & 1) != 0) == present;
    return ltCount(entryPtr, from, to, 1) == (present ? <u32>(to - from) : 0);
  }
  if (tag != TABLE) return ((flagsOf(entryPtr) & 1) != 0) == present;
  const childLevel = level - 1;
  const pages = pagesOf(childLevel);
  let child = childPtr(entryPtr, indexAt(start, childLevel));
  let at = start;
  while (at < end) {
    const next = min((at & ~(pages - 1)) + pages, end);
    if (!treeHolds(child, childLevel, at, next, present)) return false;
    at = next;
    child += ENTRY_BYTES;
  }
  return true;
}

// --- Zaps in place --------------------------------------------------------------------------------------------------

/**
 * Where `key`'s presence can be changed, given the level-3 entries of its 512 GiB: the leaf table that holds it, a level-2
 * entry with a leaf or nothing or, if all 512 keys around it are meant, a GiB of leaf tables that are all alike, or full or
 * empty; 0 if there is none of these.
 */
export function zapEntryAt(levelThree: usize, key: u64, isWhole: bool): usize {
  const upper = levelThree + ((<usize>indexAt(key, 3)) << 4);
  const desc = load<u32>(upper);
  if ((desc & 7) != TABLE) {
    return isWhole && ((desc & 127) == UNIFORM_OF_4K || (desc & 127) == CHUNKS_OF_4K) ? upper : 0;
  }
  return childPtr(upper, indexAt(key, 2));
}

/**
 * Reads an entry and the words of `key`'s presence and A if they are stored. Done for many keys before the first is changed,
 * their cache misses are waited for together. Returns what was read, which means nothing.
 */
export function zapEntryTouch(entryPtr: usize, key: u64): u32 {
  const desc = load<u32>(entryPtr);
  return ((desc >> 24) & 15) == 0 ? desc : load<u32>(wordPtr(entryPtr, 0, <i32>((<u32>key & 511) >> 6)));
}

/** Empties an entry of zapEntryAt() that is no leaf table, of level 2. Returns whether there was a leaf. */
export function zapEntryLeaf(entryPtr: usize): u32 {
  const leafs = tagOf(entryPtr);
  setEmpty(entryPtr);
  return leafs;
}

/**
 * Makes the leaf table of `key` empty in a GiB of them that zapEntryAt() found. Returns how many leaves there were.
 * Requires: reserve() for a boundary path.
 */
export function zapEntryChunk(entryPtr: usize, key: u64): u32 {
  const chunk = <i32>indexAt(key, 2);
  if (tagOf(entryPtr) == CHUNKS) return chunkClear(entryPtr, chunk) << 9;
  if (!takesChunks(entryPtr)) return 0;
  return chunksClear(entryPtr, chunk, chunk + 1) << 9;
}

/** The level at which a walk ends in what zapEntryAt() found, which has `tag`: 2 at a leaf or nothing, else 1. */
export function zapEntryLevel(tag: u32): u32 {
  return tag <= LEAF ? 2 : 1;
}

// --- Trees: writing --------------------------------------------------------------------------------------------------

/** Tables linked (less those freed) by the tree functions since it was last reset. */
export let linked: i64 = 0;
export function resetLinked(): void {
  linked = 0;
}

/** Makes an entry of `level` above 2 a TABLE: links one, or expands what stands for one. */
export function ensureTable(entryPtr: usize, level: i32): void {
  const tag = tagOf(entryPtr);
  if (tag >= UNIFORM) {
    expand(entryPtr, level);
  } else if (tag == EMPTY) {
    linkTable(entryPtr);
    linked++;
  } else {
    assert(tag == TABLE, 'a huge leaf must be split by its owner first');
  }
}

/**
 * Sets keys [start, end) to leaves of `leafLevel` with `flags`, linking tables down to them. With flags 0: keys become
 * absent, tables linked for them alone are freed (a value tree has no tables to keep). The range is aligned to the leaf
 * level. Requires: reserve() for two boundary paths.
 */
export function treeSet(entryPtr: usize, level: i32, start: u64, end: u64, leafLevel: i32, flags: u32): void {
  const base = start & ~(pagesOf(level) - 1);
  const whole = start == base && end == base + pagesOf(level);
  const tag = tagOf(entryPtr);
  if ((flags & 1) == 0 && tag == EMPTY) return;
  if (whole) {
    if (tag != EMPTY) {
      linked -= tablesBelow(entryPtr, level);
      freeSubtree(entryPtr, level);
    }
    if ((flags & 1) == 0) return;
    if (leafLevel == level) {
      setLeaf(entryPtr, level, flags);
    } else {
      setUniform(entryPtr, level, leafLevel, flags);
      linked += uniformTables(level, leafLevel);
    }
    return;
  }
  if (level == 2) {
    if (tag == EMPTY) {
      setUniform(entryPtr, 2, 1, 0);
      linked++;
    }
    const from = <i32>(start & 511);
    const to = <i32>((end - 1) & 511) + 1;
    if (flags & 1) {
      ltSet(entryPtr, from, to, flags);
    } else {
      ltClear(entryPtr, from, to);
      if (presentCount(entryPtr) == 0) {
        setEmpty(entryPtr);
        linked--;
      }
    }
    return;
  }
  ensureTable(entryPtr, level);
  const childLevel = level - 1;
  const pages = pagesOf(childLevel);
  let at = start;
  while (at < end) {
    const next = min((at & ~(pages - 1)) + pages, end);
    treeSet(childPtr(entryPtr, indexAt(at, childLevel)), childLevel, at, next, leafLevel, flags);
    at = next;
  }
  fold(entryPtr, level, start);
  if ((flags & 1) == 0 && tagOf(entryPtr) == UNIFORM && (flagsOf(entryPtr) & 1) == 0) {
    linked -= tablesBelow(entryPtr, level);
    setEmpty(entryPtr);
  }
}

/**
 * Makes the keys of [key, key + 512) that `masks` choose absent. Requires: some of them are present, and some others are;
 * reserve() for a boundary path.
 */
export function treeClearMasked(entryPtr: usize, level: i32, key: u64, masks: usize): void {
  while (level > 2) {
    ensureTable(entryPtr, level);
    level--;
    entryPtr = childPtr(entryPtr, indexAt(key, level));
  }
  ltClearMasked(entryPtr, masks);
}

/**
 * Clears `clear` and sets `set` in the present keys of [start, end) that have all of `need`. Returns how many.
 * Requires: reserve() for two boundary paths, and for the leaf tables between where `need` leaves a choice.
 */
export function treeModify(entryPtr: usize, level: i32, start: u64, end: u64, need: u32, clear: u32, set: u32): u64 {
  const tag = tagOf(entryPtr);
  if (tag == EMPTY) return 0;
  if (tag == LT) {
    return <u64>ltModify(entryPtr, <i32>(start & 511), <i32>((end - 1) & 511) + 1, need, clear, set);
  }
  if (tag != TABLE) {
    const flags = flagsOf(entryPtr);
    if ((flags & need) != need) return 0;
    const changed = (flags & ~clear) | set;
    if (tag == CHUNKS && (changed == flags || end - start == pagesOf(3))) {
      chunksModify(entryPtr, changed);
      return chunksCount(entryPtr, start, end);
    }
    if (changed == flags) return end - start;
    if (tag == LEAF || end - start == pagesOf(level)) {
      store<u32>(entryPtr, (load<u32>(entryPtr) & ~0xff00) | (changed << 8));
      return end - start;
    }
    expand(entryPtr, level);
  }
  const childLevel = level - 1;
  const pages = pagesOf(childLevel);
  let total: u64 = 0;
  let at = start;
  while (at < end) {
    const next = min((at & ~(pages - 1)) + pages, end);
    total += treeModify(childPtr(entryPtr, indexAt(at, childLevel)), childLevel, at, next, need, clear, set);
    at = next;
  }
  fold(entryPtr, level, start);
  return total;
}
