// Visits the sptes that map [start, end): parents before children, a subtree, a table or a run of entries at a time.
//
// One walk serves every operation that changes entries in place: what it does at an entry is set by walkFor(). It counts
// the entries that a walk by real tables would visit, by arithmetic where entries are alike.
// Keys are gfns as the root indexes them: of a TD's direct root with the shared bit set.
// Mirrors: arch/x86/kvm/mmu/tdp_iter.c. Left out: RCU (one thread).

import { handleChangedSptes } from './changed_spte';
import { chunkFlags, chunksClear, chunksCount, chunksModify, takesChunks } from './chunks';
import { C_NX_LPAGE_SPLITS, C_VISITED_L1, count, ctl } from './control';
import {
  CHUNKS,
  COUNTED_BIT,
  COUNTED_SHIFT,
  childPtr,
  clearMarks,
  EMPTY,
  ENTRY_BYTES,
  flagsOf,
  indexAt,
  isTracked,
  LEAF,
  LT,
  leafLevelOf,
  pagesOf,
  planesOf,
  presentCount,
  setEmpty,
  setLeaf,
  setUniform,
  sideCount,
  TABLE,
  tagOf,
  UNIFORM,
  UNIFORM_OF_4K,
} from './entry';
import {
  ltAgeRun,
  ltClear,
  ltCount,
  ltEmptyReleased,
  ltFlags,
  ltModify,
  ltReleaseRun,
  ltRunEnd,
  releasedKeeps,
  runHits,
  valueWord,
  wordMask,
} from './leaf_table';
import { overZapped } from './losses';
import { expand, fold, foldReleased, freeSubtree, uniformTables } from './page_table';
import { sideDelete, sideGet, sideKey } from './side';
import { PRESENT } from './spte';
import {
  codeOfFlags,
  putSptes,
  SPTE_FROZEN,
  SPTE_NONPRESENT,
  SPTE_TABLE,
  spteHead,
  traceAdvance,
  traceRoom,
} from './trace';

/** Present leaves become non-present. */
export const WALK_ZAP: u32 = 0;
/** Flags change in present leaves that have all of `need`. */
export const WALK_MODIFY: u32 = 1;
/** Present leaves that have all of `need` are counted. */
export const WALK_TEST: u32 = 2;
/** Every present entry of level `minLevel` is cleared, tables with all below them. */
export const WALK_ZAP_PASS: u32 = 3;

// What the walk under way does; set by walkFor() for each piece.
let op: u32 = 0;
let need: u32 = 0;
let clear: u32 = 0;
let set: u32 = 0;
let minLevel: i32 = 1;
let rootIndex: u32 = 0;
let asId: u32 = 0;
let mirror: u32 = 0;
let keyBits: u64 = 0;
let shared: bool = false;
let tracing: bool = false;
// Where this piece starts, and whether the entries that reach back before it were visited by the piece before.
let pieceStart: u64 = 0;
let resumed: bool = false;

/** Leaves that the walk met and changed, by level; gfns outside the range that went with huge ones. */
export let hits1: u64 = 0;
export let hits2: u64 = 0;
export let hits3: u64 = 0;
export let outside: u64 = 0;
/** Tables unlinked by a zap pass. */
export let tablesGone: u64 = 0;

export function walkFor(
  walkOp: u32,
  needFlags: u32,
  clearFlags: u32,
  setFlags: u32,
  lowest: i32,
  root: u32,
  addressSpace: u32,
  isMirror: u32,
  bits: u64,
  sharedMode: bool,
): void {
  op = walkOp;
  need = needFlags | PRESENT;
  clear = clearFlags;
  set = setFlags;
  minLevel = lowest;
  rootIndex = root;
  asId = addressSpace;
  mirror = isMirror;
  keyBits = bits;
  shared = sharedMode;
  tracing = ctl.traceOn != 0;
  hits1 = 0;
  hits2 = 0;
  hits3 = 0;
  outside = 0;
  tablesGone = 0;
}

function addHits(level: i32, by: u64): void {
  if (level == 1) hits1 += by;
  else if (level == 2) hits2 += by;
  else hits3 += by;
}

/** Counts the entries of `level` that a walk of [start, end) visits in one table or in alike ones side by side. */
function visit(level: i32, start: u64, end: u64): void {
  const shift = 9 * (level - 1);
  let entries = ((end - 1) >> shift) - (start >> shift) + 1;
  if (resumed && start == pieceStart && (start & (pagesOf(level) - 1)) != 0) entries--;
  count(C_VISITED_L1 + level - 1, entries);
}

function emit(level: i32, key: u64, oldCode: u32, newCode: u32, entries: u64): void {
  if (entries != 0) handleChangedSptes(asId, mirror, level, key & ~keyBits, oldCode, newCode, <u32>entries);
}

/** Of emitLeafTable(): a word of values for each plane, and the bit before it. */
const EMIT_VALUES: usize = 768;
const EMIT_BEFORE: usize = 832;

/**
 * Traces the present runs of [from, to) of a leaf table that the walk is about to change: by emitRuns() where they differ
 * in nothing but presence, and record by record where the ring may be full.
 */
function emitLeafTable(entryPtr: usize, base: u64, from: i32, to: i32): void {
  let ptr = traceRoom(512);
  if (ptr == 0) {
    emitLeafTableSlowly(entryPtr, base, from, to);
    return;
  }
  const uniformFlags = flagsOf(entryPtr);
  const planes = planesOf(entryPtr) & ~PRESENT;
  const gfn = base & ~keyBits;
  const head = spteHead(asId, mirror, 1, gfn);
  if (planes == 0) {
    const flags = uniformFlags | PRESENT;
    if ((flags & need) != need) return;
    const after = op == WALK_MODIFY ? codeOfFlags((flags & ~clear) | set) : SPTE_NONPRESENT;
    const whole = head | ((<u64>codeOfFlags(flags)) << 16) | ((<u64>after) << 32);
    traceAdvance(emitRuns(entryPtr, <u32>gfn, from, to, ptr, whole));
    return;
  }
  let before: u64 = 0;
  let runHead: u64 = 0;
  let runStart = 0;
  for (let at = EMIT_BEFORE; at < EMIT_BEFORE + 64; at += 8) store<u64>(at, 0);
  for (let word = from >> 6; word <= (to - 1) >> 6; word++) {
    const presentWord = valueWord(entryPtr, 0, word) & wordMask(word, from, to);
    const shifted = (presentWord << 1) | before;
    before = presentWord >> 63;
    // A bit is set where a run begins, ends or changes.
    let ends = presentWord ^ shifted;
    for (let left = planes; left != 0; left &= left - 1) {
      const bit = ctz(left);
      const value = valueWord(entryPtr, bit, word);
      const at = (<usize>bit) << 3;
      store<u64>(EMIT_VALUES + at, value);
      ends |= presentWord & shifted & (value ^ ((value << 1) | load<u64>(EMIT_BEFORE + at)));
      store<u64>(EMIT_BEFORE + at, value >> 63);
    }
    for (; ends != 0; ends &= ends - 1) {
      const place = ctz(ends);
      const index = (word << 6) + <i32>place;
      if (runHead != 0) {
        ptr = putSptes(ptr, runHead, <u32>gfn + <u32>runStart, <u32>(index - runStart));
        runHead = 0;
      }
      if (((presentWord >> place) & 1) == 0) continue;
      let flags = uniformFlags | PRESENT;
      for (let left = planes; left != 0; left &= left - 1) {
        const bit = ctz(left);
        const value = <u32>(load<u64>(EMIT_VALUES + ((<usize>bit) << 3)) >> place) & 1;
        flags = (flags & ~((<u32>1) << bit)) | (value << bit);
      }
      if ((flags & need) != need) continue;
      const after = op == WALK_MODIFY ? codeOfFlags((flags & ~clear) | set) : SPTE_NONPRESENT;
      runStart = index;
      runHead = head | ((<u64>codeOfFlags(flags)) << 16) | ((<u64>after) << 32);
    }
  }
  if (runHead != 0) ptr = putSptes(ptr, runHead, <u32>gfn + <u32>runStart, <u32>(to - runStart));
  traceAdvance(ptr);
}

/** Writes a record, `head` in front, at `ptr` for each run of present keys of [from, to). Returns where the next one goes. */
function emitRuns(entryPtr: usize, gfn: u32, from: i32, to: i32, ptr: usize, head: u64): usize {
  // Where a run began that reaches the end of the words so far; -1: none does.
  let open = -1;
  for (let word = from >> 6; word <= (to - 1) >> 6; word++) {
    const base = gfn + ((<u32>word) << 6);
    const present = valueWord(entryPtr, 0, word) & wordMask(word, from, to);
    const before = (present << 1) | (open < 0 ? 0 : 1);
    let starts = present & ~before;
    // Each is one behind a run.
    let ends = before & ~present;
    if (open >= 0) {
      if (ends == 0) continue;
      const length = (word << 6) + <i32>ctz(ends) - open;
      ptr = putSptes(ptr, head, gfn + <u32>open, <u32>length);
      open = -1;
      ends &= ends - 1;
    }
    for (; ends != 0; ends &= ends - 1) {
      const start = <u32>ctz(starts);
      ptr = putSptes(ptr, head, base + start, <u32>ctz(ends) - start);
      starts &= starts - 1;
    }
    if (starts != 0) open = (word << 6) + <i32>ctz(starts);
  }
  return open < 0 ? ptr : putSptes(ptr, head, gfn + <u32>open, <u32>(to - open));
}

/** As emitLeafTable(), where the ring may be full in the middle: record by record, so that what is dropped is counted. */
function emitLeafTableSlowly(entryPtr: usize, base: u64, from: i32, to: i32): void {
  let at = from;
  while (at < to) {
    const flags = ltFlags(entryPtr, at);
    const end = ltRunEnd(entryPtr, at, to);
    if ((flags & need) == need) {
      const after = op == WALK_MODIFY ? codeOfFlags((flags & ~clear) | set) : SPTE_NONPRESENT;
      emit(1, base + <u64>at, codeOfFlags(flags), after, <u64>(end - at));
    }
    at = end;
  }
}

function leafTable(entryPtr: usize, start: u64, end: u64): void {
  const from = <i32>(start & 511);
  const to = <i32>((end - 1) & 511) + 1;
  if (presentCount(entryPtr) == 0) return;
  if (op == WALK_TEST) {
    hits1 += <u64>ltCount(entryPtr, from, to, need);
    return;
  }
  if (tracing) emitLeafTable(entryPtr, start & ~511, from, to);
  if (op == WALK_MODIFY) {
    hits1 += <u64>ltModify(entryPtr, from, to, need, clear, set);
    return;
  }
  hits1 += <u64>ltClear(entryPtr, from, to);
}

/** Whether the walk can treat [start, end) of a UNIFORM entry of `level` without giving it tables. */
function uniformAtOnce(entryPtr: usize, level: i32, start: u64, end: u64): bool {
  const leafLevel = leafLevelOf(entryPtr);
  const flags = flagsOf(entryPtr);
  if (op == WALK_ZAP_PASS) {
    if (leafLevel > minLevel || (leafLevel == minLevel && (flags & PRESENT) == 0)) return true;
    if (leafLevel < minLevel && tracing) return false;
  } else {
    if (leafLevel < minLevel || (flags & need) != need || op == WALK_TEST) return true;
  }
  const pages = pagesOf(level);
  const reach = pagesOf(max(leafLevel, op == WALK_ZAP_PASS ? minLevel : 1)) - 1;
  return (start & ~reach & (pages - 1)) == 0 && ((end + reach) & ~reach) - (start & ~reach) == pages;
}

function uniform(entryPtr: usize, level: i32, start: u64, end: u64): void {
  const leafLevel = leafLevelOf(entryPtr);
  const flags = flagsOf(entryPtr);
  for (let at = level - 1; at >= max(leafLevel, minLevel); at--) visit(at, start, end);
  const pages = pagesOf(leafLevel);
  if (op == WALK_ZAP_PASS) {
    if (leafLevel > minLevel) return;
    if (leafLevel < minLevel) {
      // Each entry of minLevel links tables: all of them go with what is below.
      const links = pagesOf(level) / pagesOf(minLevel);
      tablesGone += links * uniformTables(minLevel, leafLevel);
      if (flags & PRESENT) addHits(leafLevel, pagesOf(level) / pages);
      setUniform(entryPtr, level, minLevel, 0);
      return;
    }
  }
  if (leafLevel < minLevel || (flags & need) != need) return;
  const first = start & ~(pages - 1);
  const last = (end + pages - 1) & ~(pages - 1);
  const leafs = (last - first) / pages;
  addHits(leafLevel, leafs);
  if (op == WALK_TEST) return;
  const after = op == WALK_MODIFY ? (flags & ~clear) | set : 0;
  if (tracing) emit(leafLevel, first, codeOfFlags(flags), codeOfFlags(after), leafs);
  if (op != WALK_MODIFY) beyond(start, end, first, last);
  setUniform(entryPtr, level, leafLevel, after);
}

function zaps(): bool {
  return op == WALK_ZAP || op == WALK_ZAP_PASS;
}

/**
 * Whether the walk can treat [start, end) of an entry of `level` chunk by chunk: zaps of whole leaf tables in a direct root,
 * and of what they left behind whatever concerns all of it or changes nothing.
 */
function chunksAtOnce(entryPtr: usize, level: i32, start: u64, end: u64): bool {
  if (level != 3 || !takesChunks(entryPtr)) return false;
  if (zaps()) return minLevel == 1 && mirror == 0 && ((start | end) & 511) == 0;
  if (tagOf(entryPtr) != CHUNKS) return false;
  return minLevel > 1 || op == WALK_TEST || (flagsOf(entryPtr) & need) != need || end - start == pagesOf(3);
}

function chunks(entryPtr: usize, start: u64, end: u64): void {
  for (let at = 2; at >= minLevel; at--) visit(at, start, end);
  const flags = flagsOf(entryPtr);
  if (minLevel > 1 || (flags & need) != need) return;
  if (op == WALK_TEST) {
    hits1 += chunksCount(entryPtr, start, end);
    return;
  }
  const after = op == WALK_MODIFY ? (flags & ~clear) | set : 0;
  if (tracing) {
    for (let at = start; at < end; at += 512) {
      const isFull = tagOf(entryPtr) == UNIFORM || chunkFlags(entryPtr, indexAt(at, 2)) != 0;
      if (isFull) emit(1, at, codeOfFlags(flags), codeOfFlags(after), 512);
    }
  }
  if (op == WALK_MODIFY) {
    hits1 += chunksCount(entryPtr, start, end);
    chunksModify(entryPtr, after);
    return;
  }
  hits1 += (<u64>chunksClear(entryPtr, <i32>indexAt(start, 2), <i32>indexAt(end - 1, 2) + 1)) << 9;
}

/** Leaves that reach from `first` to `last` were zapped for [start, end). */
function beyond(start: u64, end: u64, first: u64, last: u64): void {
  if (first == start && last == end) return;
  outside += last - first - (end - start);
  overZapped(mirror, first & ~keyBits, start & ~keyBits);
  overZapped(mirror, end - keyBits, last - keyBits);
}

function hugeLeaf(entryPtr: usize, level: i32, start: u64, end: u64): void {
  if (op == WALK_ZAP_PASS && level != minLevel) return;
  const flags = flagsOf(entryPtr);
  if ((flags & need) != need) return;
  addHits(level, 1);
  if (op == WALK_TEST) return;
  const after = op == WALK_MODIFY ? (flags & ~clear) | set : 0;
  if (tracing) emit(level, start & ~(pagesOf(level) - 1), codeOfFlags(flags), codeOfFlags(after), 1);
  if (op == WALK_MODIFY) {
    setLeaf(entryPtr, level, after);
    return;
  }
  const base = start & ~(pagesOf(level) - 1);
  beyond(start, end, base, base + pagesOf(level));
  setEmpty(entryPtr);
}

/** Walks what an already visited entry of `level` holds of [start, end), a range within the entry. */
function walkEntry(entryPtr: usize, level: i32, start: u64, end: u64): void {
  const tag = tagOf(entryPtr);
  if (tag == EMPTY) return;
  if (tag == LEAF) {
    hugeLeaf(entryPtr, level, start, end);
    return;
  }
  if (op == WALK_ZAP_PASS && level == minLevel) {
    const base = start & ~(pagesOf(level) - 1);
    if (tracing) emit(level, base, SPTE_TABLE, SPTE_NONPRESENT, 1);
    removeTable(entryPtr, level, base);
    return;
  }
  if (level - 1 < minLevel) return;
  if (tag == LT) {
    count(C_VISITED_L1, end - start);
    leafTable(entryPtr, start, end);
    return;
  }
  if (tag >= UNIFORM) {
    if (tag == UNIFORM && uniformAtOnce(entryPtr, level, start, end)) {
      uniform(entryPtr, level, start, end);
      return;
    }
    if (chunksAtOnce(entryPtr, level, start, end)) {
      chunks(entryPtr, start, end);
      return;
    }
    expand(entryPtr, level);
  }
  const childLevel = level - 1;
  visit(childLevel, start, end);
  const pages = pagesOf(childLevel);
  let child = childPtr(entryPtr, indexAt(start, childLevel));
  let at = start;
  if (childLevel == 2 && minLevel == 1 && op != WALK_ZAP_PASS) {
    // Leaf tables or 2M leaves side by side, which is nearly all there is to walk.
    const isPlainZap = op == WALK_ZAP && !tracing && mirror == 0;
    const isAge = op == WALK_MODIFY && !tracing && clear == COUNTED_BIT && set == 0 && need == (COUNTED_BIT | PRESENT);
    let visited: u64 = 0;
    while (at < end) {
      const next = min((at & ~511) + 512, end);
      const tag = tagOf(child);
      const isWhole = next - at == 512;
      if (tag == LT) {
        if (isWhole && (isPlainZap || isAge)) {
          const first = child;
          const last = first + ((<usize>((end - at) >> 9)) << 4);
          child = isAge ? ltAgeRun(first, last) : ltReleaseRun(first, last);
          const keys = (<u64>(child - first)) << 5;
          visited += keys;
          hits1 += runHits;
          at += keys;
          if (isAge) continue;
          if (keys == pagesOf(3) && releasedKeeps == 0 && foldReleased(entryPtr)) {
            count(C_VISITED_L1, visited);
            return;
          }
          ltEmptyReleased(first, child);
          continue;
        }
        visited += next - at;
        leafTable(child, at, next);
      } else if (isWhole && (isPlainZap || isAge)) {
        // A leaf or nothing. Whether there is a leaf, or a young one, is for no branch to guess.
        const desc = load<u32>(child);
        hits2 += <u64>(isAge ? desc >> (8 + COUNTED_SHIFT) : tag) & tag;
        store<u32>(child, isAge ? desc & ~(COUNTED_BIT << 8) : EMPTY);
      } else if (tag == LEAF) {
        hugeLeaf(child, 2, at, next);
      }
      at = next;
      child += ENTRY_BYTES;
    }
    count(C_VISITED_L1, visited);
  } else if (childLevel == 3 && minLevel == 1 && !tracing && (op == WALK_ZAP || op == WALK_MODIFY)) {
    // GiBs of 4K leaves that are all alike, one after the other.
    const leafs = pagesOf(3);
    let alike: u64 = 0;
    while (at < end) {
      const next = min((at & ~(leafs - 1)) + leafs, end);
      const desc = load<u32>(child);
      const flags = (desc >> 8) & 255;
      if ((desc & 127) == UNIFORM_OF_4K && (flags & need) == need && next - at == leafs) {
        setUniform(child, 3, 1, op == WALK_MODIFY ? (flags & ~clear) | set : 0);
        alike++;
      } else {
        walkEntry(child, 3, at, next);
      }
      at = next;
      child += ENTRY_BYTES;
    }
    hits1 += alike * leafs;
    count(C_VISITED_L1, alike * leafs);
    count(C_VISITED_L1 + 1, alike << 9);
  }
  while (at < end) {
    const next = min((at & ~(pages - 1)) + pages, end);
    walkEntry(child, childLevel, at, next);
    at = next;
    child += ENTRY_BYTES;
  }
  // A walk in pieces ends with the piece that reaches the end: what it gave tables of their own folds again.
  if (op != WALK_TEST && (end & (pagesOf(level) - 1)) == 0) fold(entryPtr, level, end - 1);
}

/**
 * Walks [start, end) of the root entry at `level` (one above the root table). `isResumed` says that an earlier piece of
 * the same walk ended at `start`: entries that reach back before it are not counted again.
 */
export function walkPiece(entryPtr: usize, level: i32, start: u64, end: u64, isResumed: bool): void {
  pieceStart = start;
  resumed = isResumed;
  // Down to the last entry that holds the whole range. A range that ends where an entry of level 3 does may fold it.
  if (!isResumed && (end & (pagesOf(3) - 1)) != 0) {
    const differs = start ^ (end - 1);
    while (tagOf(entryPtr) == TABLE && level > minLevel && differs >> (9 * (level - 2)) == 0) {
      level--;
      count(C_VISITED_L1 + level - 1, 1);
      entryPtr = childPtr(entryPtr, indexAt(start, level));
    }
  }
  walkEntry(entryPtr, level, start, end);
}

// --- Removing a table ------------------------------------------------------------------------------------------------

function removeLeafTable(entryPtr: usize, base: u64): void {
  const side = sideCount(entryPtr);
  if (tracing || side != 0) {
    let at = 0;
    while (at < 512) {
      const flags = ltFlags(entryPtr, at);
      let end = ltRunEnd(entryPtr, at, 512);
      if (flags & PRESENT) {
        if (tracing) emit(1, base + <u64>at, codeOfFlags(flags), SPTE_FROZEN, <u64>(end - at));
        hits1 += <u64>(end - at);
      } else if (side == 0) {
        if (shared) emit(1, base + <u64>at, SPTE_NONPRESENT, SPTE_FROZEN, <u64>(end - at));
      } else {
        let run = at;
        for (let index = at; index < end; index++) {
          const key = sideKey(rootIndex, base + <u64>index);
          const code = sideGet(key);
          if (code == 0) continue;
          if (tracing && shared) {
            emit(1, base + <u64>run, SPTE_NONPRESENT, SPTE_FROZEN, <u64>(index - run));
            emit(1, base + <u64>index, code, SPTE_FROZEN, 1);
          }
          run = index + 1;
          sideDelete(key);
        }
        if (tracing && shared) emit(1, base + <u64>run, SPTE_NONPRESENT, SPTE_FROZEN, <u64>(end - run));
      }
      at = end;
    }
    ltClear(entryPtr, 0, 512);
  } else {
    hits1 += <u64>ltClear(entryPtr, 0, 512);
  }
}

/**
 * Unlinks what an entry of `level` links and frees it: children become FROZEN, tables below go with them. In shared mode
 * every child is exchanged, in exclusive mode present ones only. Leaves the entry EMPTY. Adds to hits and tablesGone.
 * Mirrors: handle_removed_pt(), arch/x86/kvm/mmu/tdp_mmu.c
 */
export function removeTable(entryPtr: usize, level: i32, base: u64): void {
  const tag = tagOf(entryPtr);
  tablesGone++;
  if (isTracked(entryPtr)) count(C_NX_LPAGE_SPLITS, <u64>-1);
  clearMarks(entryPtr);
  if (tag == LT) {
    removeLeafTable(entryPtr, base);
    setEmpty(entryPtr);
    return;
  }
  const childLevel = level - 1;
  if (tag >= UNIFORM) {
    const leafLevel = leafLevelOf(entryPtr);
    const flags = flagsOf(entryPtr);
    if (leafLevel == childLevel || !tracing) {
      const leafs = tag == CHUNKS ? (<u64>presentCount(entryPtr)) << 9 : pagesOf(level) / pagesOf(leafLevel);
      if (flags & PRESENT) addHits(leafLevel, leafs);
      tablesGone += uniformTables(level, leafLevel) - 1;
      if (tracing && (shared || (flags & PRESENT) != 0)) emit(childLevel, base, codeOfFlags(flags), SPTE_FROZEN, 512);
      freeSubtree(entryPtr, level);
      return;
    }
    expand(entryPtr, level);
  }
  const first = childPtr(entryPtr, 0);
  for (let index: u32 = 0; index < 512; index++) {
    const child = first + ((<usize>index) << 4);
    const childBase = base + <u64>index * pagesOf(childLevel);
    const childTag = tagOf(child);
    if (childTag == EMPTY) {
      if (tracing && shared) {
        let run: u32 = 1;
        while (index + run < 512 && tagOf(child + ((<usize>run) << 4)) == EMPTY) run++;
        emit(childLevel, childBase, SPTE_NONPRESENT, SPTE_FROZEN, <u64>run);
        index += run - 1;
      }
    } else if (childTag == LEAF) {
      const flags = flagsOf(child);
      if (tracing) emit(childLevel, childBase, codeOfFlags(flags), SPTE_FROZEN, 1);
      addHits(childLevel, 1);
    } else {
      if (tracing) emit(childLevel, childBase, SPTE_TABLE, SPTE_FROZEN, 1);
      removeTable(child, childLevel, childBase);
    }
    setEmpty(child);
  }
  setEmptyTable(entryPtr);
}

function setEmptyTable(entryPtr: usize): void {
  // Every child is EMPTY: only the table itself is left to free.
  freeSubtree(entryPtr, 3);
}

// --- Cutting a walk --------------------------------------------------------------------------------------------------

let left: f64 = 0;
let cutKey: u64 = 0;

/** Takes the visits of `level` in [start, end) from `left`; false, with cutKey set, when they do not all fit. */
function take(level: i32, start: u64, end: u64): bool {
  const shift = 9 * (level - 1);
  const again = resumed && start == pieceStart && (start & (pagesOf(level) - 1)) != 0;
  const entries = <f64>(((end - 1) >> shift) - (start >> shift) + 1) - (again ? 1.0 : 0.0);
  if (entries <= left) {
    left -= entries;
    return true;
  }
  const fit = <u64>left + (again ? 1 : 0);
  cutKey = fit == 0 ? start : ((start >> shift) + fit) << shift;
  return false;
}

/** Walks [start, end) of alike entries, virtual ones below `level`. */
function cutUniform(level: i32, lowest: i32, start: u64, end: u64): bool {
  const childLevel = level - 1;
  if (childLevel == lowest) return take(childLevel, start, end);
  const pages = pagesOf(childLevel);
  let at = start;
  while (at < end) {
    const next = min((at & ~(pages - 1)) + pages, end);
    if (!take(childLevel, at, next)) return false;
    if (!cutUniform(childLevel, lowest, at, next)) return false;
    at = next;
  }
  return true;
}

function cutEntry(entryPtr: usize, level: i32, start: u64, end: u64): bool {
  const tag = tagOf(entryPtr);
  if (tag == EMPTY || tag == LEAF || level - 1 < minLevel) return true;
  if (tag == LT) return take(1, start, end);
  if (tag >= UNIFORM) return cutUniform(level, max(leafLevelOf(entryPtr), minLevel), start, end);
  const childLevel = level - 1;
  const pages = pagesOf(childLevel);
  let at = start;
  while (at < end) {
    const next = min((at & ~(pages - 1)) + pages, end);
    if (!take(childLevel, at, next)) return false;
    if (!cutEntry(childPtr(entryPtr, indexAt(at, childLevel)), childLevel, at, next)) return false;
    at = next;
  }
  return true;
}

/**
 * Where a walk of [start, end) must pause to visit no more than `budget` entries: the first key of the first entry that
 * no longer fits, or `end`. Requires walkFor(). `left` of the budget is in cutLeft().
 */
export function walkCut(entryPtr: usize, level: i32, start: u64, end: u64, budget: f64, isResumed: bool): u64 {
  pieceStart = start;
  resumed = isResumed;
  left = budget;
  return cutEntry(entryPtr, level, start, end) ? end : min(cutKey, end);
}
export function cutLeft(): f64 {
  return left;
}

/** The first key and the level of the deepest entry that a walk meets at `key`. */
export let deepestLevel: i32 = 0;
export function deepestEntry(entryPtr: usize, level: i32, key: u64): u64 {
  while (tagOf(entryPtr) == TABLE && level - 1 > minLevel) {
    level--;
    entryPtr = childPtr(entryPtr, indexAt(key, level));
  }
  const tag = tagOf(entryPtr);
  let deepest = level;
  if (tag == LT) deepest = 1;
  else if (tag >= UNIFORM) deepest = leafLevelOf(entryPtr);
  else if (tag == TABLE) deepest = level - 1;
  deepestLevel = max(deepest, minLevel);
  return key & ~(pagesOf(deepestLevel) - 1);
}

/** Counts one more visit of the entries that begin exactly at `key`: those met just before a yield at `key`. */
export function visitAt(rootLevel: i32, key: u64): void {
  for (let level = rootLevel; level >= deepestLevel; level--) {
    if ((key & (pagesOf(level) - 1)) == 0) count(C_VISITED_L1 + level - 1, 1);
  }
}
