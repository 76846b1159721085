// Read-only walks: leaves as runs, the entries from a root down, and the oracle that looks for what must not be.

import { attributesRunEnd, isPrivateGfn } from './attributes';
import { chunkFlags } from './chunks';
import { ctl, FORM_GMEM_IN_PLACE, hasPrivateMem, SEPT_TREE, STALE_TREE, VM_SNP, VM_TDX } from './control';
import {
  CHUNKS,
  childPtr,
  EMPTY,
  flagsOf,
  indexAt,
  isMarked,
  LEAF,
  LT,
  leafLevelOf,
  pagesOf,
  TABLE,
  tagOf,
  UNIFORM,
  UNIFORM_OF_4K,
} from './entry';
import { gmemAt, gmemByHandle, npagesOf, PAGES_LEVEL, pagesTree } from './gmems';
import { IO_BASE, IO_BYTES } from './layout';
import { ltFlags, ltFlagsUnguessed } from './leaf_table';
import { endGfnOf, gfnToMemslot, MEM_GUEST_MEMFD } from './memslots';
import { atEnd, atFlags, atLevel, levelThreeTable, treeAt, treeFlags, treeRunEnd } from './page_table';
import { RMP_2M, RMP_ASSIGNED, RMP_VALIDATED, rmpFlags, rmpGfn, rmpRunEnd } from './rmp';
import { sideGet, sideKey } from './side';
import { KIND, PRESENT } from './spte';
import { EBADF, EINVAL, ENOENT, STATUS_NO_HANDLE } from './status';
import {
  entryOf,
  findRoot,
  indexOf,
  keyBitsOf,
  ROOT_DIRECT,
  ROOT_MIRROR,
  Root,
  rootAt,
  rootEntryLevel,
} from './tdp_mmu';
import { SEPT_BLOCKED, SEPT_PRESENT } from './tdx_module';
import { codeOfFlags } from './trace';

const RECORD_BYTES: usize = 48;
const RECORDS_MAX: u32 = <u32>(IO_BYTES / RECORD_BYTES);

function put(index: u32, a: f64, b: f64, c: f64, d: f64, e: f64, f: f64): void {
  const ptr = IO_BASE + <usize>index * RECORD_BYTES;
  store<f64>(ptr, a);
  store<f64>(ptr, b, 8);
  store<f64>(ptr, c, 16);
  store<f64>(ptr, d, 24);
  store<f64>(ptr, e, 32);
  store<f64>(ptr, f, 40);
}

/** End of the keys of a root whose keys have `bits` set, the shared bit or none. */
function keysEnd(bits: u64): u64 {
  return bits != 0 ? bits * 2 : pagesOf(rootEntryLevel());
}

/**
 * Leaf runs of a root from `fromGfn` on, each level, gfn, leaves, flags, 0, 0 at IO_BASE. Returns how many; a full
 * buffer asks to go on behind the last.
 */
export function inspectLeafs(rootIndex: u32, fromGfn: f64): i32 {
  if (rootIndex >= ctl.rootHighWater || rootAt(rootIndex).used == 0) return STATUS_NO_HANDLE;
  const root = rootAt(rootIndex);
  const bits = keyBitsOf(root);
  const limit = keysEnd(bits);
  let key = <u64>fromGfn + bits;
  let records: u32 = 0;
  while (key < limit && records < RECORDS_MAX) {
    treeAt(entryOf(root), rootEntryLevel(), key);
    const end = min(atEnd, limit);
    if (atFlags & PRESENT) {
      const pages = pagesOf(atLevel);
      put(records, <f64>atLevel, <f64>(key - bits), <f64>((end - key) / pages), <f64>atFlags, 0, 0);
      records++;
    }
    key = end;
  }
  return <i32>records;
}

/**
 * Leaf runs of the S-EPT from `fromGfn` on, each level, gfn, leaves, flags (tdx_module.ts), 0, 0 at IO_BASE. Returns how
 * many; a full buffer asks to go on behind the last.
 */
export function inspectSept(fromGfn: f64): i32 {
  if (ctl.vmType != VM_TDX) return -EINVAL;
  let gfn = <u64>fromGfn;
  let records: u32 = 0;
  while (gfn < ctl.directBits && records < RECORDS_MAX) {
    treeAt(SEPT_TREE, rootEntryLevel(), gfn);
    const end = min(atEnd, ctl.directBits);
    if (atFlags & PRESENT) {
      put(records, <f64>atLevel, <f64>gfn, <f64>((end - gfn) / pagesOf(atLevel)), <f64>atFlags, 0, 0);
      records++;
    }
    gfn = end;
  }
  return <i32>records;
}

/**
 * The entries that a walk for `gfn` passes: level, class (as trace.ts), flags, first gfn, mark, index at IO_BASE.
 * Returns how many.
 */
export function inspectWalk(rootIndex: u32, gfn: f64): i32 {
  if (rootIndex >= ctl.rootHighWater || rootAt(rootIndex).used == 0) return STATUS_NO_HANDLE;
  const root = rootAt(rootIndex);
  const bits = keyBitsOf(root);
  const key = <u64>gfn | bits;
  let entry = entryOf(root);
  let at = rootEntryLevel();
  let records: u32 = 0;
  while (at > 1) {
    const tag = tagOf(entry);
    if (tag == EMPTY || tag == LEAF) break;
    at--;
    const base = <f64>(key & ~(pagesOf(at) - 1) & ~bits);
    const index = <f64>indexAt(key, at);
    if (tag == TABLE) {
      entry = childPtr(entry, indexAt(key, at));
      const childTag = tagOf(entry);
      const spteClass = childTag == EMPTY ? 0 : childTag == LEAF ? 4 : 3;
      put(
        records++,
        <f64>at,
        spteClass,
        <f64>(spteClass == 4 ? flagsOf(entry) : 0),
        base,
        isMarked(entry) ? 1 : 0,
        index,
      );
      if (spteClass != 3) break;
    } else if (tag == LT) {
      const flags = ltFlags(entry, <i32>(key & 511));
      const side = flags == 0 ? sideGet(sideKey(rootIndex, key)) : 0;
      put(records++, 1, <f64>(flags & PRESENT ? 4 : side & 7), <f64>(flags != 0 ? flags : side >> 3), base, 0, index);
      break;
    } else {
      // UNIFORM, CHUNKS: the tables below are alike, or each full or empty, and stand for themselves.
      const leafLevel = leafLevelOf(entry);
      const flags = tag == CHUNKS ? chunkFlags(entry, indexAt(key, 2)) : flagsOf(entry);
      if (at > leafLevel) {
        put(records++, <f64>at, 3, 0, base, 0, index);
        continue;
      }
      put(records++, <f64>at, flags & PRESENT ? 4 : 0, <f64>(flags & PRESENT ? flags : 0), base, 0, index);
      break;
    }
  }
  return <i32>records;
}

/** What a walk for `key` ends at: the code of trace.ts, and the level at bit 16. */
export function spteAt(root: Root, key: u64): u32 {
  return spteBelow(root, entryOf(root), rootEntryLevel(), key);
}

/** As spteAt(), from the entry of `level` on. */
function spteBelow(root: Root, entry: usize, level: i32, key: u64): u32 {
  let desc = load<u32>(entry);
  while ((desc & 7) == TABLE) {
    level--;
    entry = childPtr(entry, indexAt(key, level));
    desc = load<u32>(entry);
  }
  const tag = desc & 7;
  if (tag == LT) {
    const flags = ltFlagsUnguessed(entry, <i32>(key & 511));
    const isElsewhere = ctl.sideCount != 0 && flags == 0;
    return (isElsewhere ? sideGet(sideKey(indexOf(root), key)) : codeOfFlags(flags)) | (1 << 16);
  }
  if (tag >= UNIFORM) level = (desc >> 3) & 15;
  const flags = tag == CHUNKS ? chunkFlags(entry, indexAt(key, 2)) : (desc >> 8) & 255;
  return codeOfFlags(flags) | ((<u32>level) << 16);
}

/** spteAt() of the valid root of `kind` and `asId`; 0 if there is none. */
export function inspectSpte(kind: u32, asId: u32, gfn: f64): u32 {
  const root = findRoot(kind, asId);
  return root === null ? 0 : spteAt(root, <u64>gfn | keyBitsOf(root));
}

/** 2^52: a double that an integer below it was added to holds the integer in its lowest 52 bits. */
const TWO_52: f64 = 4503599627370496.0;

/** The last gfn that a double can be. */
export const GFN_LAST: u64 = 0xfffffffffffff;

/** Whether a double is one of the `more` gfns behind `first`, or that. */
export function isGfnWithin(value: f64, first: u64, more: u64): bool {
  const sum = value + TWO_52;
  // A fraction is lost in the sum; what is too small, too large or no number has another exponent there.
  return sum - TWO_52 == value && reinterpret<u64>(sum) - reinterpret<u64>(TWO_52) - first <= more;
}
/** The gfn that isGfnWithin() found `value` to be: what a conversion gives that need not ask whether there is one. */
export function gfnOf(value: f64): u64 {
  return reinterpret<u64>(value + TWO_52) & GFN_LAST;
}

/**
 * inspectSpte() of the `gfns` doubles at IO_BASE, each answer a u32 in their place. Returns how many were answered: it
 * ends before the first that is no gfn.
 */
export function inspectSptes(kind: u32, asId: u32, gfns: u32): u32 {
  const root = findRoot(kind, asId);
  const bits: u64 = root === null ? 0 : keyBitsOf(root);
  const top: usize = root === null ? 0 : entryOf(root);
  // The level-3 entries of the last gfn's 512 GiB, where most walks can begin; 0 if there are none.
  let near: u64 = ~(<u64>0);
  let table: usize = 0;
  for (let index: u32 = 0; index < gfns; index++) {
    const gfn = load<f64>(IO_BASE + ((<usize>index) << 3));
    if (!isGfnWithin(gfn, 0, GFN_LAST)) return index;
    let code: u32 = 0;
    if (root !== null) {
      const key = gfnOf(gfn) | bits;
      if (key >> 27 != near) {
        near = key >> 27;
        table = levelThreeTable(top, rootEntryLevel(), key);
      }
      const entry = table == 0 ? top : table + ((<usize>indexAt(key, 3)) << 4);
      const desc = load<u32>(entry);
      if (table != 0 && (desc & 127) == UNIFORM_OF_4K) code = codeOfFlags((desc >> 8) & 255) | (1 << 16);
      else code = spteBelow(root, entry, table == 0 ? rootEntryLevel() : 3, key);
    }
    store<u32>(IO_BASE + ((<usize>index) << 2), code);
  }
  return gfns;
}

/**
 * The RMP entry of page `page` of a file, given by its handle; or, with fd below 0, of what backs gfn `page`. Assigned,
 * gfn, level, validated in result0 to result3. -EBADF: no such file; -EINVAL: no page of it; -ENOENT: no file backs it.
 */
export function inspectRmp(fd: i32, serial: u32, page: f64): i32 {
  if (ctl.vmType != VM_SNP) return -EINVAL;
  let at = <u64>page;
  let file: u32 = 0;
  if (fd < 0) {
    const slot = gfnToMemslot(0, at);
    if (slot === null || slot.gmem == 0) return -ENOENT;
    file = slot.gmem;
    at = at - slot.baseGfn + slot.gmemPgoff;
  } else {
    file = gmemByHandle(fd, serial);
    if (file == 0) return -EBADF;
  }
  const gmem = gmemAt(file - 1);
  if (at >= npagesOf(gmem)) return -EINVAL;
  const flags = rmpFlags(gmem, at);
  ctl.result0 = flags & RMP_ASSIGNED ? 1 : 0;
  ctl.result1 = flags != 0 ? <f64>rmpGfn(gmem, at, flags) : 0;
  ctl.result2 = flags & RMP_2M ? 2 : 1;
  ctl.result3 = flags & RMP_VALIDATED ? 1 : 0;
  return 0;
}

// --- The oracle ------------------------------------------------------------------------------------------------------

export const FOUND_STALE_BACKING: u32 = 1;
export const FOUND_KIND_MISMATCH: u32 = 2;
export const FOUND_UNFLUSHED: u32 = 3;
export const FOUND_MIRROR_DISAGREES: u32 = 4;
export const FOUND_SEPT_DISAGREES: u32 = 5;
/** A page that is not allocated is assigned in the RMP; gfn is its index in the file. */
export const FOUND_RMP_STALE: u32 = 6;
/** A private leaf whose RMP entry is of another gpa, smaller than it, or missing. */
export const FOUND_RMP_DISAGREES: u32 = 7;

let findings: u32 = 0;
function find(kind: u32, root: Root, gfn: u64, gfns: u64): void {
  if (findings < RECORDS_MAX) put(findings, <f64>kind, <f64>root.asId, <f64>root.kind, <f64>gfn, <f64>gfns, 0);
  findings++;
}

/** Looks at [start, end) of one run of leaves of one root, alike in flags. */
function checkRun(root: Root, start: u64, end: u64, flags: u32, level: i32): void {
  const isPrivate = root.kind == ROOT_MIRROR || (flags & KIND) != 0;
  let gfn = start;
  while (gfn < end) {
    let run = end;
    if (hasPrivateMem()) {
      run = attributesRunEnd(gfn, run);
      const attribute = isPrivateGfn(gfn);
      if (attribute != isPrivate) find(FOUND_KIND_MISMATCH, root, gfn, run - gfn);
    }
    if (isPrivate || isGmemShared(root, gfn)) run = checkPrivateBacking(root, gfn, run, level, isPrivate);
    else if (ctl.staleRecords != 0) {
      run = treeRunEnd(STALE_TREE, 7, gfn, run);
      if (treeFlags(STALE_TREE, 7, gfn) != 0) find(FOUND_STALE_BACKING, root, gfn, run - gfn);
    }
    gfn = run;
  }
}

/** Whether a shared leaf of `gfn` maps a page of guest_memfd too. */
function isGmemShared(root: Root, gfn: u64): bool {
  if (ctl.filterForm != FORM_GMEM_IN_PLACE) return false;
  const slot = gfnToMemslot(root.asId, gfn);
  return slot !== null && (slot.flags & MEM_GUEST_MEMFD) != 0;
}

/** A leaf that guest_memfd backs needs a resident page of the bound file. Returns the end of what was looked at. */
function checkPrivateBacking(root: Root, gfn: u64, limit: u64, level: i32, isPrivate: bool): u64 {
  const kind = root.kind == ROOT_MIRROR ? FOUND_MIRROR_DISAGREES : FOUND_STALE_BACKING;
  const slot = gfnToMemslot(root.asId, gfn);
  if (slot === null) {
    find(kind, root, gfn, 1);
    return gfn + 1;
  }
  const end = min(limit, endGfnOf(slot));
  if (slot.gmem == 0) {
    find(kind, root, gfn, end - gfn);
    return end;
  }
  const tree = pagesTree(gmemAt(slot.gmem - 1));
  const offset = slot.gmemPgoff - slot.baseGfn;
  let run = treeRunEnd(tree, PAGES_LEVEL, gfn + offset, end + offset) - offset;
  if (treeFlags(tree, PAGES_LEVEL, gfn + offset) == 0) find(kind, root, gfn, run - gfn);
  if (ctl.vmType != VM_SNP || !isPrivate) return run;
  const gmem = gmemAt(slot.gmem - 1);
  run = rmpRunEnd(gmem, gfn + offset, run + offset) - offset;
  const entry = rmpFlags(gmem, gfn + offset);
  const isTooSmall = level > 1 && (entry & RMP_2M) == 0;
  if (entry == 0 || isTooSmall || rmpGfn(gmem, gfn + offset, entry) != gfn) {
    find(FOUND_RMP_DISAGREES, root, gfn, run - gfn);
  }
  return run;
}

/** Every page that the RMP assigns is allocated. */
function checkRmp(root: Root): void {
  for (let index: u32 = 0; index < ctl.gmemHighWater; index++) {
    const gmem = gmemAt(index);
    if (gmem.used == 0) continue;
    const npages = npagesOf(gmem);
    let page: u64 = 0;
    while (page < npages) {
      let run = rmpRunEnd(gmem, page, npages);
      if (rmpFlags(gmem, page) != 0) {
        run = treeRunEnd(pagesTree(gmem), PAGES_LEVEL, page, run);
        if (treeFlags(pagesTree(gmem), PAGES_LEVEL, page) == 0) find(FOUND_RMP_STALE, root, page, run - page);
      }
      page = run;
    }
  }
}

/** Runs the oracle: kind, address space, root kind, gfn, gfns a finding at IO_BASE. Returns how many there are. */
export function vmCheck(): i32 {
  findings = 0;
  if (ctl.vmType == VM_SNP) checkRmp(rootAt(0));
  for (let index: u32 = 0; index < ctl.rootHighWater; index++) {
    const root = rootAt(index);
    if (root.used == 0 || root.invalid != 0) continue;
    if (index == 0 && ctl.flushOwed != 0) find(FOUND_UNFLUSHED, root, 0, 0);
    const bits = keyBitsOf(root);
    const limit = keysEnd(bits);
    let key = bits;
    while (key < limit) {
      treeAt(entryOf(root), rootEntryLevel(), key);
      const end = min(atEnd, limit);
      if (atFlags & PRESENT) checkRun(root, key - bits, end - bits, atFlags, atLevel);
      key = end;
    }
  }
  if (ctl.vmType == VM_TDX) checkSept();
  return <i32>findings;
}

/**
 * For every leaf of the mirror there must be one S-EPT leaf of its level, MAPPED or PENDING, and no other (R-TDX-13).
 * While a TD is built a leaf may wait for its PAGE.ADD.
 */
function checkSept(): void {
  const root = findRoot(ROOT_MIRROR, 0);
  let gfn: u64 = 0;
  while (gfn < ctl.directBits) {
    treeAt(SEPT_TREE, rootEntryLevel(), gfn);
    const septFlags = atFlags;
    const septLevel = atLevel;
    let end = min(atEnd, ctl.directBits);
    let present = false;
    let level = septLevel;
    if (root !== null) {
      treeAt(entryOf(root), rootEntryLevel(), gfn);
      present = (atFlags & PRESENT) != 0;
      level = atLevel;
      end = min(end, atEnd);
    }
    const mapped = (septFlags & SEPT_PRESENT) != 0;
    const waits = ctl.premapped != 0 && present && !mapped;
    const alike = present ? mapped && level == septLevel && (septFlags & SEPT_BLOCKED) == 0 : !mapped;
    if (!alike && !waits) {
      if (findings < RECORDS_MAX) {
        put(findings, <f64>FOUND_SEPT_DISAGREES, 0, <f64>ROOT_MIRROR, <f64>gfn, <f64>(end - gfn), 0);
      }
      findings++;
    }
    gfn = end;
  }
}

/** How many gfns a direct root maps shared although their attribute is private. */
export function staleSharedLeafs(): f64 {
  if (!hasPrivateMem()) return 0;
  let stale: u64 = 0;
  for (let index: u32 = 0; index < ctl.rootHighWater; index++) {
    const root = rootAt(index);
    if (root.used == 0 || root.invalid != 0 || root.kind != ROOT_DIRECT) continue;
    const bits = keyBitsOf(root);
    const limit = keysEnd(bits);
    let key = bits;
    while (key < limit) {
      treeAt(entryOf(root), rootEntryLevel(), key);
      const end = min(atEnd, limit);
      const shared = (atFlags & PRESENT) != 0 && (atFlags & KIND) == 0;
      if (shared) {
        const pages = pagesOf(atLevel);
        let gfn = key - bits;
        while (gfn < end - bits) {
          const run = attributesRunEnd(gfn, end - bits);
          // A leaf counts once if any gfn of it is private.
          if (isPrivateGfn(gfn)) {
            const behind = (run + pages - 1) / pages;
            stale += behind - gfn / pages;
            gfn = behind * pages;
          } else {
            gfn = run;
          }
        }
      }
      key = end;
    }
  }
  return <f64>stale;
}
