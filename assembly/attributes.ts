// Which gfns are private: two trees.
//
// Regions of 2M that are private throughout are keys of the first (gfn >> 9); of the others, the private gfns are keys of
// the second. A guest that converts 2M at a time thus takes a bit for each, where one tree of gfns would take an entry of
// 16 bytes: 24 TiB converted at random fit the cache.
// Left out: the xarray, an entry for each gfn (mem_attributes.ts counts its operations).

import { wantCuts } from './blocks';
import { ATTRIBUTES_2M_TREE, ATTRIBUTES_TREE } from './control';
import { treeCount, treeFlags, treeHolds, treeRunEnd, treeSet } from './page_table';

/** Of gfns below 2^52: 6 levels; of their regions: 5. */
const LEVEL: i32 = 7;
const LEVEL_2M: i32 = 6;

export function isPrivateGfn(gfn: u64): bool {
  return treeFlags(ATTRIBUTES_2M_TREE, LEVEL_2M, gfn >> 9) != 0 || treeFlags(ATTRIBUTES_TREE, LEVEL, gfn) != 0;
}

/** Whether all of [startGfn, endGfn) is private (`isPrivate`), or none. */
export function allArePrivate(startGfn: u64, endGfn: u64, isPrivate: bool): bool {
  if (!isPrivate) {
    return (
      treeHolds(ATTRIBUTES_2M_TREE, LEVEL_2M, startGfn >> 9, ((endGfn - 1) >> 9) + 1, false) &&
      treeHolds(ATTRIBUTES_TREE, LEVEL, startGfn, endGfn, false)
    );
  }
  const wholeStart = (startGfn + 511) & ~511;
  const wholeEnd = endGfn & ~511;
  if (wholeStart > wholeEnd) return partIsPrivate(startGfn, endGfn);
  return (
    (startGfn == wholeStart || partIsPrivate(startGfn, wholeStart)) &&
    (wholeStart == wholeEnd || treeHolds(ATTRIBUTES_2M_TREE, LEVEL_2M, wholeStart >> 9, wholeEnd >> 9, true)) &&
    (wholeEnd == endGfn || partIsPrivate(wholeEnd, endGfn))
  );
}
/** Whether all of [startGfn, endGfn), a part of one region, is private. */
function partIsPrivate(startGfn: u64, endGfn: u64): bool {
  if (treeFlags(ATTRIBUTES_2M_TREE, LEVEL_2M, startGfn >> 9) != 0) return true;
  return treeHolds(ATTRIBUTES_TREE, LEVEL, startGfn, endGfn, true);
}

/** End of the run of gfns from `gfn`, below `limit`, that are private as it is, or shared. */
export function attributesRunEnd(gfn: u64, limit: u64): u64 {
  const isPrivate = isPrivateGfn(gfn);
  let at = gfn;
  while (at < limit) {
    const region = at >> 9;
    const regions = ((limit - 1) >> 9) + 1;
    const end = min(limit, treeRunEnd(ATTRIBUTES_2M_TREE, LEVEL_2M, region, regions) << 9);
    if (treeFlags(ATTRIBUTES_2M_TREE, LEVEL_2M, region) != 0) {
      if (!isPrivate) return at;
    } else {
      if ((treeFlags(ATTRIBUTES_TREE, LEVEL, at) != 0) != isPrivate) return at;
      const run = treeRunEnd(ATTRIBUTES_TREE, LEVEL, at, end);
      if (run < end) return run;
    }
    at = end;
  }
  return limit;
}

/** Adds what setAttributes() of the range needs. */
export function wantAttributes(startGfn: u64, endGfn: u64): void {
  wantCuts(ATTRIBUTES_TREE, LEVEL, startGfn, endGfn);
  wantRegion(startGfn);
  wantRegion(endGfn);
}
function wantRegion(gfn: u64): void {
  const region = gfn >> 9;
  wantCuts(ATTRIBUTES_TREE, LEVEL, region << 9, (region + 1) << 9);
  wantCuts(ATTRIBUTES_2M_TREE, LEVEL_2M, region, region + 1);
}

/** Makes [startGfn, endGfn) private or shared. Requires: wantAttributes() is reserved. */
export function setAttributes(startGfn: u64, endGfn: u64, isPrivate: bool): void {
  const wholeStart = (startGfn + 511) & ~511;
  const wholeEnd = endGfn & ~511;
  if (wholeStart > wholeEnd) {
    setPart(startGfn, endGfn, isPrivate);
    return;
  }
  if (startGfn < wholeStart) setPart(startGfn, wholeStart, isPrivate);
  if (wholeStart < wholeEnd) {
    treeSet(ATTRIBUTES_2M_TREE, LEVEL_2M, wholeStart >> 9, wholeEnd >> 9, 1, isPrivate ? 1 : 0);
    treeSet(ATTRIBUTES_TREE, LEVEL, wholeStart, wholeEnd, 1, 0);
  }
  if (wholeEnd < endGfn) setPart(wholeEnd, endGfn, isPrivate);
}

/** As setAttributes(), of a part of one region: it may become private throughout, or cease to be. */
function setPart(startGfn: u64, endGfn: u64, isPrivate: bool): void {
  const region = startGfn >> 9;
  const base = region << 9;
  const wasWhole = treeFlags(ATTRIBUTES_2M_TREE, LEVEL_2M, region) != 0;
  if (isPrivate) {
    if (wasWhole) return;
    treeSet(ATTRIBUTES_TREE, LEVEL, startGfn, endGfn, 1, 1);
    if (treeCount(ATTRIBUTES_TREE, LEVEL, base, base + 512, 1) != 512) return;
    treeSet(ATTRIBUTES_TREE, LEVEL, base, base + 512, 1, 0);
    treeSet(ATTRIBUTES_2M_TREE, LEVEL_2M, region, region + 1, 1, 1);
    return;
  }
  if (wasWhole) {
    treeSet(ATTRIBUTES_2M_TREE, LEVEL_2M, region, region + 1, 1, 0);
    treeSet(ATTRIBUTES_TREE, LEVEL, base, base + 512, 1, 1);
  }
  treeSet(ATTRIBUTES_TREE, LEVEL, startGfn, endGfn, 1, 0);
}
