// What to do at each spte: map, zap, split, age, write-protect; roots, and the order in which whole trees go.
//
// Roots are kept newest first, as the kernel lists them. A root entry stands one level above its table (page_table.ts).
// Mirrors: arch/x86/kvm/mmu/tdp_mmu.c. Left out: RCU, async zapping.

import { want, wantCuts, wantScattered } from './blocks';
import { handleChangedSptes } from './changed_spte';
import {
  C_GFNS_ZAPPED,
  C_GFNS_ZAPPED_OUTSIDE,
  C_LEAFS_AGED,
  C_LEAFS_WRITE_PROTECTED,
  C_NX_LPAGE_SPLITS,
  C_PAGES_4K,
  C_SPLITS,
  C_TABLES,
  C_TABLES_ALLOCATED,
  C_TABLES_FREED,
  C_VISITED_L1,
  C_YIELDS,
  C_ZAPPED_DIRECT_4K,
  COUNTERS_BASE,
  count,
  ctl,
  GUEST_PATH,
  PROFILE_6_16,
  SEPT_TREE,
  STALE_TREE,
} from './control';
import {
  addSide,
  childPtr,
  dropSide,
  EMPTY,
  flagsOf,
  indexAt,
  isMarked,
  isTracked,
  LEAF,
  LT,
  leafLevelOf,
  MARK,
  MARK_TRACKED,
  pagesOf,
  setLeaf,
  setMark,
  setUniform,
  TABLE,
  tagOf,
  UNIFORM,
} from './entry';
import { ROOT_BYTES, ROOTS_BASE, ROOTS_MAX } from './layout';
import { ltAdd, ltClear, ltFlags, ltSet, ltTakeMasked, valueWord } from './leaf_table';
import {
  atEnd,
  atEntry,
  atFlags,
  atLevel,
  atTag,
  expand,
  fold,
  freeSubtree,
  leafTableAt,
  levelThreeTable,
  linked,
  linkTable,
  resetLinked,
  treeAt,
  treeCount,
  treeLook,
  treeLookNear,
  treeModify,
  treeSet,
} from './page_table';
import { pauseForBudget } from './pause';
import { sideDelete, sideGet, sideKey, sideSet } from './side';
import { ACCESSED, DIRTY, HOST_WRITABLE, KIND, MMU_WRITABLE, NX, PRESENT, WRITABLE } from './spte';
import {
  cutLeft,
  deepestEntry,
  hits1,
  hits2,
  hits3,
  outside,
  removeTable,
  tablesGone,
  visitAt,
  WALK_MODIFY,
  WALK_TEST,
  WALK_ZAP,
  WALK_ZAP_PASS,
  walkCut,
  walkFor,
  walkPiece,
} from './tdp_iter';
import { tdxFreeTables, tdxMayDisagree, tdxRunEnd, tdxZapped, tdxZapsPiecewise, wantTdxZap } from './tdx';
import { flushRemoteTlbs, flushRemoteTlbsRange } from './tlb';
import {
  codeOfFlags,
  EV_SPLIT_HUGE_PAGE,
  EV_ZAP_LEAFS,
  EV_ZAP_LEAFS_RET,
  EV_ZAP_ROOT,
  EV_ZAP_SP,
  SPTE_FROZEN,
  SPTE_MMIO,
  SPTE_NONPRESENT,
  SPTE_TABLE,
  trace,
  trace2,
} from './trace';

export const ROOT_DIRECT: u32 = 0;
export const ROOT_MIRROR: u32 = 1;
/** Sets of roots: a bit for each kind. */
export const ROOTS_DIRECT: u32 = 1;
export const ROOTS_MIRROR: u32 = 2;
export const ROOTS_BOTH: u32 = 3;

// Root, 64 bytes. used = 0 marks a free record. sequence orders roots by age, older is the next older one (index + 1, 0 =
// none) of the list that begins at ctl.rootNewest; users counts the vCPUs that have it loaded.
@unmanaged
export class Root {
  entryLo: u64;
  entryHi: u64;
  used: u32;
  kind: u32;
  asId: u32;
  invalid: u32;
  sequence: u32;
  users: u32;
  zapped: u32;
  older: u32;
  tables: u64;
  pad1: u64;
}
if (offsetof<Root>() != 64) ERROR('Root is no longer 64 bytes: redraw it');

export function rootAt(index: u32): Root {
  return changetype<Root>(ROOTS_BASE + <usize>index * ROOT_BYTES);
}
export function entryOf(root: Root): usize {
  return changetype<usize>(root);
}
export function indexOf(root: Root): u32 {
  return <u32>((changetype<usize>(root) - ROOTS_BASE) / ROOT_BYTES);
}
/** The level of the entry that stands for a root. */
export function rootEntryLevel(): i32 {
  return <i32>ctl.rootLevel + 1;
}
/** What a root adds to a gfn to index it: the shared bit in a TD's direct root. */
export function keyBitsOf(root: Root): u64 {
  return root.kind == ROOT_DIRECT ? ctl.directBits : 0;
}
/** First gfn that no root can map. Mirrors: tdp_mmu_max_gfn_exclusive() */
export function maxGfnExclusive(bits: u64): u64 {
  // The host's width, and what is left of the root table behind the shared bit.
  return min((<u64>1) << (ctl.maxphyaddr - 12), ((<u64>1) << (9 * ctl.rootLevel)) - bits);
}

/** The newest root older than `before` (0 = the newest of all); null at the end. What `before` names may be gone by now. */
export function nextRoot(before: u32): Root | null {
  let number = ctl.rootNewest;
  while (number != 0) {
    const root = rootAt(number - 1);
    if (before == 0 || root.sequence < before) return root;
    number = root.older;
  }
  return null;
}

export function findRoot(kind: u32, asId: u32): Root | null {
  for (let number = ctl.rootNewest; number != 0; number = rootAt(number - 1).older) {
    const root = rootAt(number - 1);
    if (root.invalid == 0 && root.kind == kind && root.asId == asId) return root;
  }
  return null;
}

/** Finds or makes the valid root of `kind` and `asId`. Null if ROOTS_MAX are in use. Mirrors: kvm_tdp_mmu_alloc_root() */
export function allocRoot(kind: u32, asId: u32): Root | null {
  const found = findRoot(kind, asId);
  if (found !== null) return found;
  for (let index: u32 = 0; index < ROOTS_MAX; index++) {
    const root = rootAt(index);
    if (root.used != 0) continue;
    memory.fill(changetype<usize>(root), 0, ROOT_BYTES);
    setUniform(entryOf(root), rootEntryLevel(), <i32>ctl.rootLevel, 0);
    root.used = 1;
    root.kind = kind;
    root.asId = asId;
    ctl.rootSequence++;
    root.sequence = ctl.rootSequence;
    root.older = ctl.rootNewest;
    ctl.rootNewest = index + 1;
    if (index >= ctl.rootHighWater) ctl.rootHighWater = index + 1;
    return root;
  }
  return null;
}

/** Frees an invalid root that was zapped and that no vCPU has loaded. */
export function putRoot(root: Root): void {
  if (root.invalid == 0 || root.zapped == 0 || root.users != 0) return;
  freeSubtree(entryOf(root), rootEntryLevel());
  root.used = 0;
  const number = indexOf(root) + 1;
  if (ctl.rootNewest == number) {
    ctl.rootNewest = root.older;
    return;
  }
  let newer = rootAt(ctl.rootNewest - 1);
  while (newer.older != number) newer = rootAt(newer.older - 1);
  newer.older = root.older;
}

function countLeafs(level: i32, by: i64): void {
  count(C_PAGES_4K + level - 1, <u64>by);
}
function countTables(root: Root, by: i64): void {
  root.tables += <u64>by;
  count(C_TABLES, <u64>by);
  if (by > 0) {
    count(C_TABLES_ALLOCATED, <u64>by);
  } else {
    count(C_TABLES_FREED, <u64>-by);
  }
}

/** Adds to a reservation what a walk of [startGfn, endGfn) that changes leaves needs, in every root of `asId`. */
export function wantWalk(asId: u32, startGfn: u64, endGfn: u64): void {
  for (let index: u32 = 0; index < ctl.rootHighWater; index++) {
    const root = rootAt(index);
    if (root.used == 0 || root.asId != asId) continue;
    const bits = keyBitsOf(root);
    const limit = maxGfnExclusive(bits);
    wantCuts(entryOf(root), rootEntryLevel(), min(startGfn, limit) + bits, min(endGfn, limit) + bits);
    if (root.kind == ROOT_MIRROR) {
      const end = min(endGfn, limit);
      if (tdxZapsPiecewise()) wantScattered(SEPT_TREE, rootEntryLevel(), startGfn, end, 1, true);
      wantCuts(SEPT_TREE, rootEntryLevel(), min(startGfn, limit), end);
      wantTdxZap();
    }
    // Between pieces of a walk there is a boundary that moves along.
    if (ctl.budget < Infinity) want(<u64>(rootEntryLevel() - 2), 1);
    if (ctl.staleRecords != 0) wantCuts(STALE_TREE, 7, startGfn, endGfn);
  }
}

/** As wantWalk(), where any leaves of the range change, each on its own. */
export function wantScatteredWalks(asId: u32, startGfn: u64, endGfn: u64): void {
  // Between two steps vCPUs may map what is not mapped now.
  const mayFill = ctl.stopMask != 0;
  for (let index: u32 = 0; index < ctl.rootHighWater; index++) {
    const root = rootAt(index);
    if (root.used == 0 || root.asId != asId) continue;
    const bits = keyBitsOf(root);
    const limit = maxGfnExclusive(bits);
    const end = min(endGfn, limit) + bits;
    wantCuts(entryOf(root), rootEntryLevel(), min(startGfn, limit) + bits, end);
    if (root.kind == ROOT_MIRROR) {
      // BLOCKED, then absent.
      wantScattered(SEPT_TREE, rootEntryLevel(), startGfn, min(endGfn, limit), 2, mayFill);
      wantTdxZap();
    }
    wantScattered(entryOf(root), rootEntryLevel(), startGfn + bits, end, 1, mayFill);
    if (ctl.staleRecords != 0) wantScattered(STALE_TREE, 7, startGfn, endGfn, 1, true);
  }
}

// --- Walking a range -------------------------------------------------------------------------------------------------

/** Books what one piece of a walk did. Returns whether it changed anything. */
function settle(root: Root, walkOp: u32): bool {
  const total = hits1 + hits2 + hits3;
  ctl.walkHits += total;
  if (walkOp == WALK_ZAP || walkOp == WALK_ZAP_PASS) {
    if (total != 0) zapped(root, hits1, hits2, hits3, outside);
    if (tablesGone != 0) {
      countTables(root, -(<i64>tablesGone));
      if (root.kind == ROOT_MIRROR) tdxFreeTables(tablesGone);
    }
  }
  return total != 0;
}

/** Counts leaves that became non-present. */
function zapped(root: Root, leafs4k: u64, leafs2m: u64, leafs1g: u64, gfnsOutside: u64): void {
  const base = C_ZAPPED_DIRECT_4K + <i32>root.kind * 3;
  if (leafs4k != 0) {
    count(base, leafs4k);
    countLeafs(1, -(<i64>leafs4k));
  }
  if (leafs2m != 0) {
    count(base + 1, leafs2m);
    countLeafs(2, -(<i64>leafs2m));
  }
  if (leafs1g != 0) {
    count(base + 2, leafs1g);
    countLeafs(3, -(<i64>leafs1g));
  }
  count(C_GFNS_ZAPPED, leafs4k + leafs2m * 512 + leafs1g * 262144);
  if (gfnsOutside != 0) count(C_GFNS_ZAPPED_OUTSIDE, gfnsOutside);
}

/**
 * Walks [start, end) of `root` and does `walkOp` at each entry, without a pause or a yield. `flush` says that a flush is
 * owed before; returns whether one is owed after.
 */
function walkAtOnce(
  root: Root,
  startGfn: u64,
  endGfn: u64,
  walkOp: u32,
  need: u32,
  clear: u32,
  lowest: i32,
  sharedMode: bool,
  flush: bool,
): bool {
  const bits = keyBitsOf(root);
  const stop = min(endGfn, maxGfnExclusive(bits));
  ctl.walkHits = 0;
  if (startGfn >= stop) return flush;
  let changed: bool;
  if (root.kind == ROOT_MIRROR && isZap(walkOp)) {
    const batched = tracksInBatch();
    changed = zapMirror(root, startGfn, stop, walkOp, lowest, sharedMode, false, batched);
    if (changed && batched) tdxZapped(startGfn, stop, 0);
  } else {
    walkFor(walkOp, need, clear, 0, lowest, indexOf(root), root.asId, root.kind, bits, sharedMode);
    walkPiece(entryOf(root), rootEntryLevel(), startGfn | bits, stop + bits, false);
    changed = settle(root, walkOp);
  }
  if (changed && walkOp == WALK_ZAP && root.invalid == 0) {
    ctl.flushOwed = 1;
    return true;
  }
  return flush;
}

function isZap(walkOp: u32): bool {
  return walkOp == WALK_ZAP || walkOp == WALK_ZAP_PASS;
}

/**
 * Zaps [startGfn, endGfn) of a mirror root, and in the S-EPT beneath unless the caller does it for a `batched` walk: one run
 * of leaves alike after the other where a trace shall show which call follows which change, or the trees may disagree.
 * Returns whether anything changed.
 */
function zapMirror(
  root: Root,
  startGfn: u64,
  endGfn: u64,
  walkOp: u32,
  lowest: i32,
  sharedMode: bool,
  isResumed: bool,
  batched: bool,
): bool {
  const diverged = tdxMayDisagree();
  const byRun = diverged || (ctl.traceOn != 0 && !batched);
  let changed = false;
  let at = startGfn;
  while (at < endGfn) {
    let end = byRun ? tdxRunEnd(at, endGfn) : endGfn;
    let leafLevel = 0;
    if (diverged) {
      tdpMmuWalk(root, at);
      leafLevel = atLevel;
      end = min(end, atEnd);
    }
    walkFor(walkOp, 0, 0, 0, lowest, indexOf(root), root.asId, root.kind, 0, sharedMode);
    walkPiece(entryOf(root), rootEntryLevel(), at, end, isResumed || at != startGfn);
    if (settle(root, walkOp)) {
      changed = true;
      if (!batched) tdxZapped(at, end, leafLevel);
    }
    at = end;
  }
  return changed;
}

/** Whether what a walk zaps goes from the S-EPT at its end, with one TRACK. */
function tracksInBatch(): bool {
  return ctl.trackBatched != 0 && !tdxMayDisagree();
}

/** Whether a walk that may yield is to stop somewhere: at an injected yield, or when its budget is used up. */
function mayStop(canYield: bool): bool {
  return canYield && (ctl.yieldArmed != 0 || (ctl.budget < Infinity && ctl.paused == 0));
}

/** Whether zapping leaves is all there is to a zap: no trace, nothing that could stop it, no records to keep. */
function isPlain(canYield: bool): bool {
  return ctl.traceOn == 0 && ctl.staleRecords == 0 && !mayStop(canYield);
}

/** Whether a walk of [startGfn, endGfn) may fold tables: where it comes to the end of an entry of level 3. */
export function mayFoldIn(startGfn: u64, endGfn: u64): bool {
  return (startGfn ^ endGfn) >> 18 != 0;
}

/** As walkAtOnce(), in pieces where a budget or an injected yield asks for them. */
function walkRange(
  root: Root,
  startGfn: u64,
  endGfn: u64,
  walkOp: u32,
  need: u32,
  clear: u32,
  lowest: i32,
  canYield: bool,
  sharedMode: bool,
  flush: bool,
): bool {
  if (mayStop(canYield)) {
    return walkInPieces(root, startGfn, endGfn, walkOp, need, clear, lowest, sharedMode, flush);
  }
  return walkAtOnce(root, startGfn, endGfn, walkOp, need, clear, lowest, sharedMode, flush);
}

/** A yield flushes what is owed and starts again from the root at the entry it came to (R-MMU-3). */
function walkInPieces(
  root: Root,
  startGfn: u64,
  endGfn: u64,
  walkOp: u32,
  need: u32,
  clear: u32,
  lowest: i32,
  sharedMode: bool,
  flush: bool,
): bool {
  const bits = keyBitsOf(root);
  const limit = maxGfnExclusive(bits);
  const stop = min(endGfn, limit) + bits;
  const origin = startGfn | bits;
  ctl.walkHits = 0;
  if (startGfn >= min(endGfn, limit)) return flush;
  const level = rootEntryLevel();
  const entry = entryOf(root);
  const owes = root.invalid == 0 && walkOp == WALK_ZAP;
  let at = origin;
  let resumed = false;
  let lastYield = origin;
  // Visits of pieces that ended on the way down to the next entry: they count towards it.
  let carried: f64 = 0;
  // What goes from the mirror goes from the S-EPT: piece by piece, or (batched) from here on at once.
  const mirrored = root.kind == ROOT_MIRROR && isZap(walkOp);
  let batchFrom = origin;
  let batchHits: u64 = 0;
  while (at < stop) {
    walkFor(walkOp, need, clear, 0, lowest, indexOf(root), root.asId, root.kind, bits, sharedMode);
    let end = stop;
    let yieldHere = false;
    if (ctl.yieldArmed != 0) {
      const wanted = <u64>ctl.yieldGfn | bits;
      if (wanted >= at && wanted < stop) {
        const first = max(deepestEntry(entry, level, wanted), at);
        if (first > lastYield) {
          end = first;
          yieldHere = true;
        }
      }
    }
    let pauseHere = false;
    if (ctl.budget < Infinity && ctl.paused == 0) {
      const cut = walkCut(entry, level, at, end, ctl.budget + carried, resumed);
      carried = cut == at ? ctl.budget + carried : 0;
      ctl.budget = cutLeft();
      if (cut < end) {
        end = cut;
        pauseHere = true;
        ctl.budget = 0;
      }
    }
    if (end > at) {
      let changed: bool;
      if (mirrored) {
        const batched = tracksInBatch();
        changed = zapMirror(root, at, end, walkOp, lowest, sharedMode, resumed, batched);
        if (changed && batched) batchHits++;
      } else {
        walkPiece(entry, level, at, end, resumed);
        changed = settle(root, walkOp);
      }
      if (changed && owes) {
        flush = true;
        ctl.flushOwed = 1;
      }
      resumed = true;
      at = end;
    }
    if (batchHits != 0 && (yieldHere || at == stop)) {
      tdxZapped(batchFrom, at, 0);
      batchFrom = at;
      batchHits = 0;
    }
    if (pauseHere) {
      pauseForBudget(at & ~bits);
    } else if (yieldHere) {
      ctl.yieldArmed = 0;
      deepestEntry(entry, level, at);
      visitAt(<i32>ctl.rootLevel, at);
      count(C_YIELDS, 1);
      if (flush) {
        flushRemoteTlbs();
        flush = false;
      }
      lastYield = at;
      resumed = false;
    }
  }
  return flush;
}

/**
 * Zaps the leaf sptes of [startGfn, endGfn) in one root; tables stay. Returns whether a flush is owed.
 * Mirrors: tdp_mmu_zap_leafs()
 */
function tdpMmuZapLeafs(root: Root, startGfn: u64, endGfn: u64, canYield: bool, flush: bool): bool {
  if (ctl.traceOn != 0) trace2(EV_ZAP_LEAFS, (canYield ? 1 : 0) | (flush ? 2 : 0), 0, startGfn, endGfn, 0);
  flush = walkRange(root, startGfn, endGfn, WALK_ZAP, 0, 0, 1, canYield, false, flush);
  if (ctl.staleRecords != 0 && root.kind == ROOT_DIRECT) {
    treeSet(STALE_TREE, 7, startGfn, endGfn, 1, 0);
  }
  if (ctl.traceOn != 0) trace(EV_ZAP_LEAFS_RET, flush ? 1 : 0, 0, 0);
  return flush;
}

export const ALL_AS: u32 = 0xffffffff;
/**
 * Zaps [startGfn, endGfn) in every root of `kinds` and `asId` (ALL_AS: of all), invalid ones too.
 * Mirrors: kvm_tdp_mmu_unmap_gfn_range()
 */
export function tdpMmuUnmapRange(
  kinds: u32,
  asId: u32,
  startGfn: u64,
  endGfn: u64,
  canYield: bool,
  validOnly: bool,
  flush: bool,
): bool {
  // Within one leaf table, with nothing to report and nothing that could stop it.
  const isShort = (startGfn ^ (endGfn - 1)) >> 9 == 0 && isPlain(canYield);
  let root = nextRoot(0);
  while (root !== null) {
    const sequence = root.sequence;
    if (((kinds >> root.kind) & 1) != 0 && (asId == ALL_AS || root.asId == asId) && !(validOnly && root.invalid != 0)) {
      const zapped = isShort ? zapInLeafTable(root, startGfn, endGfn) : -1;
      if (zapped < 0) flush = tdpMmuZapLeafs(root, startGfn, endGfn, canYield, flush);
      else if (zapped > 0 && root.invalid == 0) flush = true;
    }
    root = nextRoot(sequence);
  }
  return flush;
}

/**
 * As tdpMmuZapLeafs() of a range within 512 gfns aligned to 512, where the walk ends at a leaf table or at nothing: most of
 * the zaps there are, without the general walk's settings. Returns the leaves zapped; -1, with nothing done, where
 * it ends otherwise.
 */
function zapInLeafTable(root: Root, startGfn: u64, endGfn: u64): i32 {
  // A mirror root's zaps reach the S-EPT.
  if (root.kind != ROOT_DIRECT || mayFoldIn(startGfn, endGfn)) return -1;
  const bits = ctl.directBits;
  if (endGfn > maxGfnExclusive(bits)) return -1;
  const key = startGfn | bits;
  let entry = entryOf(root);
  let level = rootEntryLevel();
  let tag = tagOf(entry);
  while (tag == TABLE) {
    level--;
    entry = childPtr(entry, indexAt(key, level));
    tag = tagOf(entry);
  }
  if (tag != LT && tag != EMPTY) return -1;
  for (let at = level; at <= <i32>ctl.rootLevel; at++) count(C_VISITED_L1 + at - 1, 1);
  ctl.walkHits = 0;
  if (tag == EMPTY) return 0;
  count(C_VISITED_L1, endGfn - startGfn);
  const leafs = ltClear(entry, <i32>(startGfn & 511), <i32>((endGfn - 1) & 511) + 1);
  if (leafs == 0) return 0;
  ctl.walkHits = <u64>leafs;
  zapped(root, <u64>leafs, 0, 0, 0);
  if (root.invalid == 0) ctl.flushOwed = 1;
  return <i32>leafs;
}

/**
 * The root that tdpMmuUnmapRange() of any range would walk, where it is one valid direct root and nothing asks for more than
 * zapping its leaves. Else null.
 */
export function tdpMmuPlainRoot(kinds: u32, asId: u32, canYield: bool): Root | null {
  if (kinds != ROOTS_DIRECT || !isPlain(canYield)) return null;
  let plain: Root | null = null;
  for (let number = ctl.rootNewest; number != 0; number = rootAt(number - 1).older) {
    const root = rootAt(number - 1);
    if (root.kind != ROOT_DIRECT || root.asId != asId) continue;
    if (root.invalid != 0 || plain !== null) return null;
    plain = root;
  }
  return plain;
}

/** Where the level-3 entries of `gfn`'s 512 GiB begin; 0 if none are stored. */
export function tdpMmuLevelThree(root: Root, gfn: u64): usize {
  return levelThreeTable(entryOf(root), rootEntryLevel(), gfn | keyBitsOf(root));
}

/**
 * Books zaps of 4K and 2M leaves in `root`: `walks` to an entry of level 2 each, with `visits` of level 1 below, and gfns
 * `beyond` the ranges that went with the leaves.
 */
export function tdpMmuZappedIn(root: Root, walks: u64, visits: u64, leafs: u64, leafs2: u64, beyond: u64): void {
  for (let level = <i32>ctl.rootLevel; level >= 2; level--) count(C_VISITED_L1 + level - 1, walks);
  count(C_VISITED_L1, visits);
  if ((leafs | leafs2) != 0) zapped(root, leafs, leafs2, 0, beyond);
}

/** The gfn behind the first that an accessed leaf of [startGfn, endGfn) maps; 0 if there is none. */
function firstYoungEnd(root: Root, startGfn: u64, endGfn: u64): u64 {
  const bits = keyBitsOf(root);
  let key = startGfn + bits;
  while (key < endGfn + bits) {
    treeAt(entryOf(root), rootEntryLevel(), key);
    if ((atFlags & (PRESENT | ACCESSED)) == (PRESENT | ACCESSED)) return min(key - bits + 1, endGfn);
    key = atEnd;
  }
  return 0;
}

/**
 * Clears Accessed in the leaves of [startGfn, endGfn), or only looks. Returns whether any had it. Never yields.
 * Mirrors: kvm_tdp_mmu_age_gfn_range(), kvm_tdp_mmu_test_age_gfn(). 6.16 leaves invalid roots out.
 */
export function tdpMmuAge(kinds: u32, asId: u32, startGfn: u64, endGfn: u64, testOnly: bool): bool {
  let young: u64 = 0;
  let root = nextRoot(0);
  while (root !== null) {
    const skip = ctl.profile == PROFILE_6_16 && root.invalid != 0;
    if (((kinds >> root.kind) & 1) != 0 && root.asId == asId && !skip) {
      const walkOp = testOnly ? WALK_TEST : WALK_MODIFY;
      // 6.16 is content with the first young leaf.
      const first = testOnly && ctl.profile == PROFILE_6_16 ? firstYoungEnd(root, startGfn, endGfn) : 0;
      walkAtOnce(root, startGfn, first != 0 ? first : endGfn, walkOp, ACCESSED, ACCESSED, 1, false, false);
      young += ctl.walkHits;
      if (first != 0) return true;
    }
    root = nextRoot(root.sequence);
  }
  if (!testOnly) count(C_LEAFS_AGED, young);
  return young != 0;
}

/**
 * Write-protects the leaves of [startGfn, endGfn), those of `lowest` level and above, in the valid roots of `asId`.
 * Mirrors: kvm_tdp_mmu_wrprot_slot()
 */
export function tdpMmuWrprotRange(asId: u32, startGfn: u64, endGfn: u64, lowest: i32): void {
  let root = nextRoot(0);
  while (root !== null) {
    const sequence = root.sequence;
    if (root.asId == asId && root.invalid == 0) {
      walkRange(root, startGfn, endGfn, WALK_MODIFY, WRITABLE, WRITABLE, lowest, true, false, false);
      count(C_LEAFS_WRITE_PROTECTED, ctl.walkHits);
    }
    root = nextRoot(sequence);
  }
}

/**
 * Write-protects the 4K leaves whose bit is set in `mask`, bit 0 being `gfn`. A walk of one word ends at the first leaf
 * after the last set bit once every set bit has met its leaf.
 * Mirrors: clear_dirty_pt_masked(), arch/x86/kvm/mmu/tdp_mmu.c
 */
export function tdpMmuWrprotMask(asId: u32, gfn: u64, mask: u64): void {
  let root = nextRoot(0);
  while (root !== null) {
    if (root.asId == asId && root.invalid == 0) {
      const first = <u64>ctz(mask);
      const last = <u64>(63 - clz(mask));
      // Whether every set bit has a 4K leaf decides where the walk ends.
      let end = gfn + 64;
      let found: u64 = 0;
      for (let bit = first; bit <= last; bit++) {
        if (((mask >> bit) & 1) == 0) continue;
        tdpMmuWalk(root, gfn + bit);
        if (atLevel == 1 && (atFlags & PRESENT) != 0) found++;
      }
      if (found == <u64>popcnt(mask)) {
        let after = last + 1;
        for (; after < 64; after++) {
          tdpMmuWalk(root, gfn + after);
          if (atFlags & PRESENT) break;
        }
        end = min(gfn + after + 1, gfn + 64);
      }
      walkAtOnce(root, gfn + first, end, WALK_TEST, 0, 0, 1, false, false);
      let bit = first;
      while (bit <= last) {
        // A word of a slot that is not aligned to 64 may reach into a second table.
        const border = min(last + 1, ((gfn + bit) | 511) + 1 - gfn);
        tdpMmuWalk(root, gfn + bit);
        const small = atLevel == 1;
        while (bit < border) {
          let run = bit;
          while (run < border && ((mask >> run) & 1) != 0) run++;
          if (small && run > bit) walkUncounted(root, gfn + bit, gfn + run, WRITABLE, WRITABLE);
          bit = run;
          while (bit < border && ((mask >> bit) & 1) == 0) bit++;
        }
      }
    }
    root = nextRoot(root.sequence);
  }
}

/**
 * As tdpMmuWrprotMask() for each word of `masks` of the 512 gfns from `gfn` on, by leaf tables. `walks`: how many walks down
 * to the table the caller and the words make together, which are counted here. Returns false, with nothing done, unless
 * every valid root of `asId` has a leaf table there. Requires: `gfn` is the first of a leaf table; the trace is off.
 */
export function tdpMmuWrprotTable(asId: u32, gfn: u64, masks: usize, walks: u64): bool {
  let root = nextRoot(0);
  while (root !== null) {
    if (root.asId == asId && root.invalid == 0) {
      if (root.kind != ROOT_DIRECT || gfn + 512 > maxGfnExclusive(keyBitsOf(root))) return false;
      if (leafTableAt(entryOf(root), rootEntryLevel(), gfn | keyBitsOf(root)) == 0) return false;
    }
    root = nextRoot(root.sequence);
  }
  root = nextRoot(0);
  while (root !== null) {
    if (root.asId == asId && root.invalid == 0) {
      const table = leafTableAt(entryOf(root), rootEntryLevel(), gfn | keyBitsOf(root));
      let visited: u64 = 0;
      for (let word = 0; word < 8; word++) {
        const mask = load<u64>(masks + ((<usize>word) << 3));
        if (mask == 0) continue;
        const present = valueWord(table, 0, word);
        let end: u64 = 64;
        if ((mask & ~present) == 0) {
          // Every set bit meets its leaf: the walk ends with the first leaf after them.
          const later = present & (~(<u64>1) << (63 - clz(mask)));
          if (later != 0) end = ctz(later) + 1;
        }
        visited += end - ctz(mask);
      }
      count(C_VISITED_L1, visited);
      for (let level = 2; level <= <i32>ctl.rootLevel; level++) count(C_VISITED_L1 + level - 1, walks);
      count(C_LEAFS_WRITE_PROTECTED, <u64>ltTakeMasked(table, ctz(WRITABLE), masks));
    }
    root = nextRoot(root.sequence);
  }
  return true;
}

/** A walk whose visits another one has counted already. */
function walkUncounted(root: Root, startGfn: u64, endGfn: u64, need: u32, clear: u32): void {
  const visited = COUNTERS_BASE + ((<usize>C_VISITED_L1) << 3);
  memory.copy(VISITED_SAVE, visited, 5 * 8);
  walkAtOnce(root, startGfn, endGfn, WALK_MODIFY, need, clear, 1, false, false);
  count(C_LEAFS_WRITE_PROTECTED, ctl.walkHits);
  memory.copy(visited, VISITED_SAVE, 5 * 8);
}
const VISITED_SAVE: usize = 640;

/**
 * Takes W and the permission to regain it from the leaf of `lowest` level or above that maps `gfn`.
 * Mirrors: kvm_tdp_mmu_write_protect_gfn()
 */
export function tdpMmuWriteProtectGfn(asId: u32, gfn: u64, lowest: i32): void {
  let root = nextRoot(0);
  while (root !== null) {
    if (root.asId == asId && root.invalid == 0) {
      tdpMmuWalk(root, gfn);
      const hit = (atFlags & PRESENT) != 0 && atLevel >= lowest && (atFlags & (WRITABLE | MMU_WRITABLE)) != 0;
      const walkOp = hit ? WALK_MODIFY : WALK_TEST;
      walkAtOnce(root, gfn, gfn + 1, walkOp, 0, WRITABLE | MMU_WRITABLE, lowest, false, false);
      if (hit) count(C_LEAFS_WRITE_PROTECTED, 1);
    }
    root = nextRoot(root.sequence);
  }
}

// --- Splitting -------------------------------------------------------------------------------------------------------

/** What a leaf's children inherit when a leaf of `level` is split: all but NX, which 4K children lose under nx_huge_pages. */
function splitFlags(flags: u32, level: i32): u32 {
  return level == 2 && ctl.nxHugePages != 0 ? flags & ~NX : flags;
}

/** Splits one huge leaf in place: a table of 512 leaves that map the same. No flush: translations are identical. */
function splitLeaf(root: Root, entryPtr: usize, level: i32, key: u64): void {
  const flags = flagsOf(entryPtr);
  if (ctl.traceOn != 0) {
    const gfn = key & ~(pagesOf(level) - 1) & ~keyBitsOf(root);
    handleChangedSptes(root.asId, root.kind, level, gfn, codeOfFlags(flags), SPTE_TABLE, 1);
    trace(EV_SPLIT_HUGE_PAGE, 0, <u32>level, gfn);
  }
  setUniform(entryPtr, level, level - 1, splitFlags(flags, level));
  countTables(root, 1);
  countLeafs(level, -1);
  countLeafs(level - 1, 512);
  count(C_SPLITS, 1);
}

function splitEntry(root: Root, entryPtr: usize, level: i32, start: u64, end: u64, target: i32): void {
  let tag = tagOf(entryPtr);
  if (tag == EMPTY || level <= target) return;
  if (tag == LEAF) {
    splitLeaf(root, entryPtr, level, start);
    tag = tagOf(entryPtr);
  }
  if (level - 1 <= target || tag == LT) return;
  if (tag >= UNIFORM) {
    const leafLevel = leafLevelOf(entryPtr);
    const flags = flagsOf(entryPtr);
    const whole = end - start == pagesOf(level);
    if (leafLevel <= target || (flags & PRESENT) == 0) {
      for (let at = level - 1; at >= max(leafLevel, target + 1); at--) countVisits(at, start, end);
      return;
    }
    if (whole && ctl.traceOn == 0) {
      for (let at = level - 1; at > target; at--) countVisits(at, start, end);
      let after = flags;
      for (let at = leafLevel; at > target; at--) {
        const leafs = pagesOf(level) / pagesOf(at);
        after = splitFlags(after, at);
        countTables(root, leafs);
        countLeafs(at, -(<i64>leafs));
        countLeafs(at - 1, leafs * 512);
        count(C_SPLITS, leafs);
      }
      setUniform(entryPtr, level, target, after);
      return;
    }
    expand(entryPtr, level);
  }
  const childLevel = level - 1;
  countVisits(childLevel, start, end);
  const pages = pagesOf(childLevel);
  let at = start;
  while (at < end) {
    const next = min((at & ~(pages - 1)) + pages, end);
    splitEntry(root, childPtr(entryPtr, indexAt(at, childLevel)), childLevel, at, next, target);
    at = next;
  }
  fold(entryPtr, level, start);
}

/** Where the piece under way of a splitting walk starts, and whether an earlier piece visited what reaches before it. */
let splitStart: u64 = 0;
let splitResumed: bool = false;

function countVisits(level: i32, start: u64, end: u64): void {
  const shift = 9 * (level - 1);
  let entries = ((end - 1) >> shift) - (start >> shift) + 1;
  if (splitResumed && start == splitStart && (start & (pagesOf(level) - 1)) != 0) entries--;
  count(C_VISITED_L1 + level - 1, entries);
}

/**
 * Splits every huge leaf above `target` that meets [startGfn, endGfn) in the valid roots of `asId`, parents first.
 * Mirrors: kvm_tdp_mmu_try_split_huge_pages()
 */
export function tdpMmuTrySplitHugePages(asId: u32, startGfn: u64, endGfn: u64, target: i32): void {
  let root = nextRoot(0);
  while (root !== null) {
    const sequence = root.sequence;
    if (root.asId == asId && root.invalid == 0) {
      const bits = keyBitsOf(root);
      const limit = min(endGfn, maxGfnExclusive(bits));
      const entry = entryOf(root);
      const level = rootEntryLevel();
      let at = startGfn;
      let resumed = false;
      let lastYield = startGfn;
      let carried: f64 = 0;
      while (at < limit) {
        // The tables that a split adds are visited with the leaf it replaces.
        walkFor(WALK_TEST, 0, 0, 0, target + 1, indexOf(root), root.asId, root.kind, bits, true);
        let end = limit;
        let yieldHere = false;
        if (ctl.yieldArmed != 0) {
          const wanted = <u64>ctl.yieldGfn;
          if (wanted >= at && wanted < limit) {
            const first = max(deepestEntry(entry, level, wanted | bits), at + bits) - bits;
            if (first > lastYield) {
              end = first;
              yieldHere = true;
            }
          }
        }
        let pauseHere = false;
        if (ctl.budget < Infinity && ctl.paused == 0) {
          const budget = ctl.budget + carried;
          const cut = walkCut(entry, level, at + bits, end + bits, budget, resumed) - bits;
          carried = cut == at ? budget : 0;
          ctl.budget = cut < end ? 0 : cutLeft();
          pauseHere = cut < end;
          end = cut;
        }
        if (end > at) {
          splitStart = at + bits;
          splitResumed = resumed;
          splitEntry(root, entry, level, at + bits, end + bits, target);
          resumed = true;
          at = end;
        }
        if (pauseHere) {
          pauseForBudget(at);
        } else if (yieldHere) {
          ctl.yieldArmed = 0;
          deepestEntry(entry, level, at | bits);
          visitAt(<i32>ctl.rootLevel, at | bits);
          count(C_YIELDS, 1);
          lastYield = at;
          resumed = false;
        }
      }
    }
    root = nextRoot(sequence);
  }
}

// --- Mapping ---------------------------------------------------------------------------------------------------------

export const RET_PF_RETRY: i32 = 1;
export const RET_PF_EMULATE: i32 = 2;
export const RET_PF_FIXED: i32 = 3;
export const RET_PF_SPURIOUS: i32 = 4;
/** A present leaf would change its pfn: the kernel's BUG. */
export const RET_PF_BUG: i32 = 5;
/** A mirror entry is FROZEN: the vendor's call is under way. */
export const RET_PF_FROZEN: i32 = 6;

/** The old flags of the entry that tdpMmuMap() last replaced. */
export let mappedOldFlags: u32 = 0;
export let mappedNewFlags: u32 = 0;
/** Whether a TABLE gave way to the new leaf. */
export let mappedOverTable: bool = false;

/** What a walk of `root` finds for `gfn`; as treeAt(). */
export function tdpMmuWalk(root: Root, gfn: u64): void {
  treeAt(entryOf(root), rootEntryLevel(), gfn | keyBitsOf(root));
}

/** As tdpMmuWalk(), without atEnd. */
export function tdpMmuLook(root: Root, gfn: u64): void {
  treeLook(entryOf(root), rootEntryLevel(), gfn | keyBitsOf(root));
}

/** As tdpMmuLook(), for the guest's accesses: gfn after gfn, mostly. */
export function tdpMmuLookNear(root: Root, gfn: u64): void {
  treeLookNear(GUEST_PATH, entryOf(root), rootEntryLevel(), gfn | keyBitsOf(root));
}

/** Counts the entries that the walks of `faults` faults visit, from the root down to `level`. */
export function tdpMmuCountFaults(level: i32, faults: u64): void {
  for (let at = <i32>ctl.rootLevel; at >= level; at--) count(C_VISITED_L1 + at - 1, faults);
}
export function tdpMmuCountFault(level: i32): void {
  tdpMmuCountFaults(level, 1);
}

/** The side code (MMIO, FROZEN) of the 4K entry of `gfn`, 0 if none. */
export function tdpMmuSideCode(root: Root, gfn: u64): u32 {
  return ctl.sideCount == 0 ? 0 : sideGet(sideKey(indexOf(root), gfn | keyBitsOf(root)));
}

/** Whether the table of level-1 entries that maps `gfn`, or at `level` the one below, was marked nx-disallowed. */
export function tdpMmuNxDisallowed(root: Root, gfn: u64, level: i32): bool {
  let entry = entryOf(root);
  let at = rootEntryLevel();
  const key = gfn | keyBitsOf(root);
  while (at > level && tagOf(entry) == TABLE) {
    at--;
    entry = childPtr(entry, indexAt(key, at));
  }
  return at == level && isMarked(entry);
}

/**
 * Walks to the entry of `level` for `key`, giving UNIFORM areas tables, splitting leaves and linking tables. With
 * `nxLevel` above 0 new tables are nx-disallowed, and counted where a page of nxLevel would have been mapped instead.
 */
function pathTo(root: Root, key: u64, level: i32, nxLevel: i32): usize {
  let entry = entryOf(root);
  let at = rootEntryLevel();
  const bits = keyBitsOf(root);
  while (at > level && at > 2) {
    // `entry` must become a TABLE.
    const tag = tagOf(entry);
    if (tag >= UNIFORM) expand(entry, at);
    else if (tag == LEAF) {
      splitLeaf(root, entry, at, key);
      expand(entry, at);
    } else if (tag == EMPTY) {
      linkTraced(root, at, key & ~bits);
      linkTable(entry);
    }
    if (nxLevel != 0 && (tag == LEAF || tag == EMPTY)) markNxDisallowed(entry, at, nxLevel);
    at--;
    entry = childPtr(entry, indexAt(key, at));
  }
  if (at == 2 && level == 1) {
    const tag = tagOf(entry);
    if (tag == LEAF) splitLeaf(root, entry, 2, key);
    else if (tag == EMPTY) {
      linkTraced(root, 2, key & ~bits);
      setUniform(entry, 2, 1, 0);
    }
    if (nxLevel != 0 && (tag == LEAF || tag == EMPTY)) markNxDisallowed(entry, 2, nxLevel);
  }
  return entry;
}

/** Links the table with entries of `level` for `gfn` in a mirror root. Requires: reserveFault(), the S-EPT has it. */
export function tdpMmuLinkTable(root: Root, gfn: u64, level: i32): void {
  pathTo(root, gfn, level, 0);
}

/** Splits the 2M leaf of a mirror root that maps `gfn`, as the S-EPT's was. Requires: reserve() for one path. */
export function tdpMmuSplitMirror(root: Root, gfn: u64): void {
  pathTo(root, gfn, 1, 0);
}

/** Splits the huge leaf that maps `gfn` down to `level` and leaves the child as it is. Requires: reserveFault(). */
export function tdpMmuSplitTo(root: Root, gfn: u64, level: i32, nxLevel: i32): void {
  tdpMmuCountFault(level);
  pathTo(root, gfn | keyBitsOf(root), level, nxLevel);
}

/** The flags that the child of `level` takes from a huge leaf of `huge` level with `flags`. */
export function tdpMmuChildFlags(flags: u32, huge: i32, level: i32): u32 {
  for (let at = huge; at > level; at--) flags = splitFlags(flags, at);
  return flags;
}

/** Every table that an exec fault makes forbids huge pages; those in a huge page's place wait to be recovered. */
function markNxDisallowed(entryPtr: usize, level: i32, nxLevel: i32): void {
  setMark(entryPtr, MARK);
  if (nxLevel < level) return;
  setMark(entryPtr, MARK_TRACKED);
  count(C_NX_LPAGE_SPLITS, 1);
}

function linkTraced(root: Root, level: i32, gfn: u64): void {
  handleChangedSptes(root.asId, root.kind, level, gfn & ~(pagesOf(level) - 1), SPTE_NONPRESENT, SPTE_TABLE, 1);
  countTables(root, 1);
}

/** D of a new leaf: writable, unless the leaf it replaces was writable already (host-model 2.8). */
export function newLeafFlags(flags: u32, oldWritableLeaf: bool): u32 {
  return (flags & WRITABLE) != 0 && !oldWritableLeaf ? flags | DIRTY : flags & ~DIRTY;
}

/**
 * Installs a leaf of `level` with `flags` (D is computed) for `gfn`. `nxLevel`: see pathTo().
 * Requires: reserveFault(); tdpMmuLook() of `gfn` was the last read. Returns: RET_PF_FIXED, RET_PF_SPURIOUS or RET_PF_BUG.
 * Mirrors: kvm_tdp_mmu_map(), tdp_mmu_map_handle_target_level()
 */
export function tdpMmuMap(root: Root, gfn: u64, level: i32, flags: u32, nxLevel: i32): i32 {
  const bits = keyBitsOf(root);
  const key = (gfn & ~(pagesOf(level) - 1)) | bits;
  if (level > 1) treeLook(entryOf(root), rootEntryLevel(), key);
  const sideCode = level == 1 ? tdpMmuSideCode(root, gfn) : 0;
  const sameLevel = atLevel == level && (atTag < UNIFORM || leafLevelOf(atEntry) == level);
  mappedOldFlags = sameLevel ? atFlags : 0;
  mappedOverTable = false;
  const oldLeaf = sameLevel && (atFlags & PRESENT) != 0;
  const wasWritable = (oldLeaf && (atFlags & WRITABLE) != 0) || (sideCode & 7) == SPTE_MMIO;
  const after = newLeafFlags(flags, wasWritable);
  mappedNewFlags = after;
  // Leaf to leaf keeps the pfn: a leaf of the other kind has another backing, one that is split on the way too.
  const present = (atFlags & PRESENT) != 0 && atLevel >= level;
  if (present && root.kind == ROOT_DIRECT && ((atFlags ^ after) & KIND) != 0) {
    tdpMmuCountFault(atLevel);
    return RET_PF_BUG;
  }
  tdpMmuCountFault(level);
  if (oldLeaf && atFlags == after) return RET_PF_SPURIOUS;
  const isThere = atTag == LT && level == 1;
  const entry = isThere ? atEntry : pathTo(root, key, level, nxLevel);
  if (level == 1) {
    const index = <i32>(key & 511);
    // A split on the way here changed what stands at the entry.
    const before = isThere ? atFlags : ltFlags(entry, index);
    mappedOldFlags = before;
    const installed = before & PRESENT ? newLeafFlags(flags, (before & WRITABLE) != 0) : after;
    mappedNewFlags = installed;
    if (before == installed) return RET_PF_SPURIOUS;
    if (ctl.traceOn != 0) {
      const oldCode = sideCode != 0 ? sideCode : codeOfFlags(before);
      handleChangedSptes(root.asId, root.kind, 1, key & ~bits, oldCode, codeOfFlags(installed), 1);
    }
    if (sideCode != 0) {
      sideDelete(sideKey(indexOf(root), key));
      dropSide(entry);
    }
    ltSet(entry, index, index + 1, installed);
    if ((before & PRESENT) == 0) countLeafs(1, 1);
    return RET_PF_FIXED;
  }
  const tag = tagOf(entry);
  const gfnBase = key & ~bits;
  if (tag == EMPTY || tag == LEAF) {
    handleChangedSptes(root.asId, root.kind, level, gfnBase, codeOfFlags(flagsOf(entry)), codeOfFlags(after), 1);
    if (tag == EMPTY) countLeafs(level, 1);
    setLeaf(entry, level, after);
    return RET_PF_FIXED;
  }
  handleChangedSptes(root.asId, root.kind, level, gfnBase, SPTE_TABLE, codeOfFlags(after), 1);
  mappedOverTable = true;
  removeSubtree(root, entry, level, key, true);
  setLeaf(entry, level, after);
  countLeafs(level, 1);
  flushRemoteTlbsRange(gfnBase, pagesOf(level));
  return RET_PF_FIXED;
}

/**
 * As tdpMmuMap() of 4K leaves, each by itself and untraced, for `pages` gfns from `gfn` on that are absent in the leaf
 * table of `entry` and have no side records.
 */
export function tdpMmuMapAbsent(entry: usize, gfn: u64, pages: u64, flags: u32): void {
  const index = <i32>(gfn & 511);
  const installed = newLeafFlags(flags, false);
  if (pages == 1) ltAdd(entry, index, installed);
  else ltSet(entry, index, index + <i32>pages, installed);
  tdpMmuCountFaults(1, pages);
  countLeafs(1, pages);
}

/** Frees the table that an entry of `level` links, in shared or exclusive mode; books what goes. */
function removeSubtree(root: Root, entryPtr: usize, level: i32, key: u64, sharedMode: bool): void {
  walkFor(WALK_ZAP_PASS, 0, 0, 0, level, indexOf(root), root.asId, root.kind, keyBitsOf(root), sharedMode);
  removeTable(entryPtr, level, key & ~(pagesOf(level) - 1));
  settle(root, WALK_ZAP_PASS);
}

/** Installs an MMIO spte of `generation` for `gfn`. Returns whether the entry changed. Mirrors: make_mmio_spte() */
export function tdpMmuMapMmio(root: Root, gfn: u64, code: u32, nxLevel: i32): bool {
  const key = gfn | keyBitsOf(root);
  tdpMmuCountFault(1);
  const oldCode = tdpMmuSideCode(root, gfn);
  if (oldCode == code) return false;
  const entry = pathTo(root, key, 1, nxLevel);
  const index = <i32>(key & 511);
  const before = ltFlags(entry, index);
  if (ctl.traceOn != 0) {
    const was = oldCode != 0 ? oldCode : codeOfFlags(before);
    handleChangedSptes(root.asId, root.kind, 1, gfn, was, code, 1);
  }
  if (before & PRESENT) {
    ltClear(entry, index, index + 1);
    countLeafs(1, -1);
  }
  if (sideSet(sideKey(indexOf(root), key), code)) addSide(entry);
  return true;
}

/** The side record of a frozen entry that is no 4K entry. */
const FROZEN_HUGE: u32 = SPTE_FROZEN | 8;

/** Whether the entry that a fault at `gfn` would set, of 4K or 2M, is FROZEN. */
export function tdpMmuIsFrozen(root: Root, gfn: u64): bool {
  if (ctl.frozenFaults == 0) return false;
  return tdpMmuSideCode(root, gfn) == SPTE_FROZEN || tdpMmuSideCode(root, gfn & ~511) == FROZEN_HUGE;
}

/**
 * Freezes the entry of `level` for `gfn` in a mirror root while the module is called. Its change is reported when it
 * thaws. Mirrors: set_external_spte_present()
 */
export function tdpMmuFreeze(root: Root, gfn: u64, level: i32): void {
  const key = gfn & ~(pagesOf(level) - 1);
  const entry = pathTo(root, key, level, 0);
  if (level > 1) sideSet(sideKey(indexOf(root), key), FROZEN_HUGE);
  else if (sideSet(sideKey(indexOf(root), key), SPTE_FROZEN)) addSide(entry);
}

/** Gives a frozen entry its final value: a leaf with `flags`, or nothing again (flags 0). */
export function tdpMmuThaw(root: Root, gfn: u64, level: i32, flags: u32): void {
  const key = gfn & ~(pagesOf(level) - 1);
  const entry = pathTo(root, key, level, 0);
  if (ctl.traceOn != 0 && (flags & PRESENT) != 0) {
    handleChangedSptes(root.asId, root.kind, level, key, SPTE_NONPRESENT, codeOfFlags(flags), 1);
  }
  sideDelete(sideKey(indexOf(root), key));
  if (level == 1) dropSide(entry);
  if ((flags & PRESENT) == 0) return;
  if (level > 1) {
    setLeaf(entry, level, flags);
  } else {
    const index = <i32>(key & 511);
    ltSet(entry, index, index + 1, flags);
  }
  countLeafs(level, 1);
}

/**
 * Installs leaves of `level` for the rest of a run whose first was mapped by tdpMmuMap(): [startGfn, endGfn), where
 * nothing is present, or everything is with the same flags. Requires: reserveFault().
 */
export function tdpMmuMapRun(root: Root, startGfn: u64, endGfn: u64, level: i32, oldFlags: u32, newFlags: u32): void {
  const bits = keyBitsOf(root);
  const start = startGfn | bits;
  const end = endGfn + bits;
  const leafs = (endGfn - startGfn) / pagesOf(level);
  for (let at = <i32>ctl.rootLevel; at >= level; at--) count(C_VISITED_L1 + at - 1, leafs);
  if (oldFlags == newFlags) return;
  handleChangedSptes(root.asId, root.kind, level, startGfn, codeOfFlags(oldFlags), codeOfFlags(newFlags), <u32>leafs);
  resetLinked();
  treeSet(entryOf(root), rootEntryLevel(), start, end, level, newFlags);
  if (linked > 0) countTables(root, linked);
  if ((oldFlags & PRESENT) == 0) countLeafs(level, leafs);
}

/** Sets flags of the leaves that map [startGfn, endGfn) without a fault: what hardware or the fast path does. Untraced. */
export function tdpMmuSetBits(root: Root, startGfn: u64, endGfn: u64, set: u32): void {
  const bits = keyBitsOf(root);
  treeModify(entryOf(root), rootEntryLevel(), startGfn + bits, endGfn + bits, PRESENT, 0, set);
}

/**
 * Zaps the present 4K leaf of `gfn` and, unless the new host pte is writable, sets it again read-only.
 * Returns whether a flush is due. Mirrors: set_spte_gfn(), arch/x86/kvm/mmu/tdp_mmu.c before 6.10
 */
export function tdpMmuSetSpte(kinds: u32, asId: u32, gfn: u64, writable: bool): bool {
  let flush = false;
  let root = nextRoot(0);
  while (root !== null) {
    if (((kinds >> root.kind) & 1) != 0 && root.asId == asId) {
      tdpMmuWalk(root, gfn);
      const flags = atFlags;
      const hit = (flags & PRESENT) != 0 && atLevel == 1;
      walkAtOnce(root, gfn, gfn + 1, hit ? WALK_ZAP : WALK_TEST, 0, 0, 1, false, false);
      if (hit) {
        flush = true;
        if (!writable && root.kind == ROOT_DIRECT) {
          const readOnly = flags & ~(WRITABLE | HOST_WRITABLE | MMU_WRITABLE | ACCESSED);
          handleChangedSptes(root.asId, root.kind, 1, gfn, SPTE_NONPRESENT, codeOfFlags(readOnly), 1);
          const entry = pathTo(root, gfn | keyBitsOf(root), 1, 0);
          ltSet(entry, <i32>(gfn & 511), <i32>(gfn & 511) + 1, readOnly);
          countLeafs(1, 1);
        }
      }
    }
    root = nextRoot(root.sequence);
  }
  return flush;
}

// --- Whole trees -----------------------------------------------------------------------------------------------------

/**
 * Zaps everything below `root`: a pass over the 4K leaves, then over 2M entries, 1G entries and the root's own. Tables
 * that a pass unlinks go with what is left in them. Mirrors: tdp_mmu_zap_root()
 */
export function tdpMmuZapRoot(root: Root, sharedMode: bool): void {
  const top = <i32>ctl.rootLevel;
  for (let pass = 1; pass <= 4; pass++) {
    const lowest = pass < 4 ? pass : top;
    trace(EV_ZAP_ROOT, sharedMode ? 1 : 0, <u32>lowest, 0);
    const end = maxGfnExclusive(keyBitsOf(root));
    walkRange(root, 0, end, WALK_ZAP_PASS, 0, 0, lowest, true, sharedMode, false);
  }
}

/** Whether `root` has a present leaf in [startGfn, endGfn). */
export function tdpMmuHasLeafs(root: Root, startGfn: u64, endGfn: u64): bool {
  const bits = keyBitsOf(root);
  return treeCount(entryOf(root), rootEntryLevel(), startGfn + bits, endGfn + bits, PRESENT) != 0;
}

// --- Tables that give way to huge pages ------------------------------------------------------------------------------

/** Counts the visits of a walk of [startGfn, endGfn) that looks at entries of `lowest` level and above. */
export function tdpMmuCountWalk(root: Root, startGfn: u64, endGfn: u64, lowest: i32): void {
  walkRange(root, startGfn, endGfn, WALK_TEST, 0, 0, lowest, true, true, false);
}

/**
 * Where a walk of [startGfn, endGfn) that may yield, looking at entries of `lowest` level and above, is to do so: the first
 * gfn of the entry; `endGfn` if nowhere.
 */
export function tdpMmuYieldOf(root: Root, startGfn: u64, endGfn: u64, lowest: i32): u64 {
  const gfn = <u64>ctl.yieldGfn;
  if (ctl.yieldArmed == 0 || gfn < startGfn || gfn >= endGfn) return endGfn;
  const bits = keyBitsOf(root);
  walkFor(WALK_TEST, 0, 0, 0, lowest, indexOf(root), root.asId, root.kind, bits, true);
  const first = deepestEntry(entryOf(root), rootEntryLevel(), gfn | bits) & ~bits;
  return first > startGfn ? first : endGfn;
}

/** The entry of `level` for `gfn` if it links a table (virtual or stored); 0 if not. */
function tableEntry(root: Root, gfn: u64, level: i32): usize {
  let entry = entryOf(root);
  let at = rootEntryLevel();
  const key = gfn | keyBitsOf(root);
  while (at > level) {
    const tag = tagOf(entry);
    if (tag >= UNIFORM && leafLevelOf(entry) < level) expand(entry, at);
    else if (tag != TABLE) return 0;
    at--;
    entry = childPtr(entry, indexAt(key, at));
  }
  const tag = tagOf(entry);
  return tag >= TABLE ? entry : 0;
}

/** Whether the entry of `level` for `gfn` links a table. Requires: reserve(). */
export function tdpMmuCollapsibleTable(root: Root, gfn: u64, level: i32): bool {
  return tableEntry(root, gfn, level) != 0;
}

/** Zaps the table at `gfn`: its entry becomes non-present, what is below goes. */
export function tdpMmuZapTable(root: Root, gfn: u64, level: i32, sharedMode: bool): void {
  const entry = tableEntry(root, gfn, level);
  handleChangedSptes(root.asId, root.kind, level, gfn, SPTE_TABLE, SPTE_NONPRESENT, 1);
  removeSubtree(root, entry, level, gfn | keyBitsOf(root), sharedMode);
}

/**
 * Puts a huge leaf in the place of the table at `gfn`, with what its first present leaf allows. Returns whether it did:
 * a table without leaves stays. Mirrors: make_huge_spte(), 6.16
 */
export function tdpMmuMakeHuge(root: Root, gfn: u64, level: i32): bool {
  const entry = tableEntry(root, gfn, level);
  const key = gfn | keyBitsOf(root);
  const end = key + pagesOf(level);
  let at = key;
  let flags: u32 = 0;
  while (at < end && (flags & PRESENT) == 0) {
    treeAt(entryOf(root), rootEntryLevel(), at);
    flags = atFlags;
    at = atEnd;
  }
  if ((flags & PRESENT) == 0) return false;
  const after = ctl.nxHugePages != 0 ? flags | NX : flags;
  handleChangedSptes(root.asId, root.kind, level, gfn, SPTE_TABLE, codeOfFlags(after), 1);
  removeSubtree(root, entry, level, key, true);
  setLeaf(entry, level, after);
  countLeafs(level, 1);
  return true;
}

/** Zaps up to `limit` nx-disallowed tables, lowest gfn first. Returns how many. */
export function tdpMmuZapMarked(root: Root, limit: u32): u32 {
  return zapMarkedBelow(root, entryOf(root), rootEntryLevel(), 0, limit);
}

function zapMarkedBelow(root: Root, entryPtr: usize, level: i32, base: u64, limit: u32): u32 {
  if (tagOf(entryPtr) != TABLE) return 0;
  let zappedTables: u32 = 0;
  const childLevel = level - 1;
  for (let index: u32 = 0; index < 512 && zappedTables < limit; index++) {
    const child = childPtr(entryPtr, index);
    const childBase = base + <u64>index * pagesOf(childLevel);
    if (isTracked(child)) {
      const gfn = childBase & ~keyBitsOf(root);
      trace(EV_ZAP_SP, 0, <u32>childLevel, gfn);
      handleChangedSptes(root.asId, root.kind, childLevel, gfn, SPTE_TABLE, SPTE_NONPRESENT, 1);
      removeSubtree(root, child, childLevel, childBase, false);
      zappedTables++;
    } else {
      zappedTables += zapMarkedBelow(root, child, childLevel, childBase, limit - zappedTables);
    }
  }
  return zappedTables;
}
