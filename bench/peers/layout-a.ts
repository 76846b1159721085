// Layout A in AssemblyScript: the same algorithms as bench/peers/native.c, step by step, so that the ratio of the two says
// what WebAssembly costs and nothing else. Compiled by bench/peers/layout-a-wasm.ts.

const ENTRIES: u32 = 512;
const SPTE_LINK: u64 = 7;
const SPTE_WRITABLE: u64 = 2;
const SPTE_HUGE: u64 = 1 << 7;
const SPTE_ACCESSED: u64 = 1 << 8;
const SPTE_DIRTY: u64 = 1 << 9;
const SPTE_PRESENT: u64 = 1 << 11;
const SPTE_PFN_MASK: u64 = 0x000ffffffffff000;
const ARENA: usize = 1 << 25;
/** Where the caller puts u32 gfns. */
export const GFNS: usize = 65536;

// What is done to page tables. The order is bench/peers/contender.ts's.
const OP_ZAP: u32 = 0;
const OP_AGE: u32 = 1;
const OP_WRITE_PROTECT: u32 = 2;
const OP_MAP: u32 = 3;
const OP_SPLIT: u32 = 4;
const OP_FREE: u32 = 5;

let pages: u64 = 0;
let rootLevel: i32 = 4;
let root: usize = 0;
let used: usize = 0;
/** Where the tables end that map the guest before anything is split. */
let linked: usize = 0;
/** Tables that nothing maps with any more, each with the next one's address in its first entry. */
let freeTables: u64 = 0;
let leafLevel: i32 = 1;

export let leafs: u64 = 0;
export let accessed: u64 = 0;
export let dirty: u64 = 0;
export let looked: u64 = 0;

function pagesOf(level: i32): u64 {
  return (<u64>1) << (9 * (level - 1));
}
function indexOf(gfn: u64, level: i32): usize {
  return <usize>((gfn >> (9 * (level - 1))) & 511);
}
function tableOf(spte: u64): usize {
  return ARENA + <usize>(spte & SPTE_PFN_MASK);
}
function isLeaf(spte: u64, level: i32): bool {
  return level == 1 || (spte & SPTE_HUGE) != 0;
}
function countLeaf(spte: u64): void {
  leafs += (spte >> 11) & 1;
  accessed += (spte >> 8) & 1;
  dirty += (spte >> 9) & 1;
}
function resetCounts(): void {
  leafs = 0;
  accessed = 0;
  dirty = 0;
}

// --- tdp_iter --------------------------------------------------------------------------------------------------------

// The iterator of native.c, step by step. gcc keeps its fields in registers; AssemblyScript does that for locals alone, so
// the steps are written out over locals. `shift` stands for the level: 9 bits each. The path stays in memory.
const PATH: usize = 1024;

function indexBy(gfn: u64, shift: u64): usize {
  return <usize>(gfn >> shift) & 511;
}
function isLeafBy(spte: u64, shift: u64): bool {
  return shift == 0 || (spte & SPTE_HUGE) != 0;
}
function shiftOf(level: i32): u64 {
  return 9 * <u64>(level - 1);
}
function pathPtr(shift: u64): usize {
  return PATH + ((<usize>shift) << 2);
}

// What iterate() does at each entry. Types, as a function of its own is compiled for each.
class Zap {}
class Age {}
class WriteProtect {}
/** Of leaves of 2M, which stand at level 2. */
class Split {}
/** Zap, with a record for each leaf. */
class Trace {}

/** Where records of 16 bytes are written, in place of gfns: as assembly/trace.ts has them. */
let recordPtr: usize = GFNS;
function emit(spte: u64, gfn: u64): void {
  const writable = <u32>((spte >> 1) & 1);
  const code = 4 | (writable << 3) | ((<u32>((spte >> 8) & 3)) << 4) | (writable << 6) | (writable << 7);
  store<u32>(recordPtr, 1 | (1 << 8) | (code << 16));
  store<u32>(recordPtr, (<u32>(gfn >> 32)) << 16, 4);
  store<u32>(recordPtr, <u32>gfn, 8);
  store<u32>(recordPtr, 1, 12);
  recordPtr += 16;
}

function iterate<Op>(start: u64, end: u64): void {
  const top = shiftOf(rootLevel);
  const bottom: u64 = idof<Op>() == idof<Split>() ? 9 : 0;
  const bit = idof<Op>() == idof<Age>() ? SPTE_ACCESSED : SPTE_WRITABLE;
  let changed: u64 = 0;
  let young: u64 = 0;
  let written: u64 = 0;
  let shift = top;
  let nextGfn = start;
  let gfn = start & (-1 << shift);
  store<usize>(pathPtr(shift), root);
  let sptep = root + (indexBy(gfn, shift) << 3);
  let spte = load<u64>(sptep);
  while (gfn < end) {
    if (idof<Op>() == idof<Zap>()) {
      if ((spte & SPTE_PRESENT) != 0 && isLeafBy(spte, shift)) {
        changed++;
        young += (spte >> 8) & 1;
        written += (spte >> 9) & 1;
        store<u64>(sptep, 0);
      }
    } else if (idof<Op>() == idof<Trace>()) {
      if ((spte & SPTE_PRESENT) != 0 && isLeafBy(spte, shift)) {
        emit(spte, gfn);
        store<u64>(sptep, 0);
      }
    } else if (idof<Op>() == idof<Split>()) {
      if ((spte & SPTE_PRESENT) != 0 && (spte & SPTE_HUGE) != 0) store<u64>(sptep, splitTable(spte));
    } else if ((spte & bit) != 0 && isLeafBy(spte, shift)) {
      changed++;
      store<u64>(sptep, spte & ~bit);
    }
    // Down.
    if (shift != bottom) {
      spte = load<u64>(sptep);
      if ((spte & SPTE_PRESENT) != 0 && (spte & SPTE_HUGE) == 0) {
        shift -= 9;
        const child = tableOf(spte);
        store<usize>(pathPtr(shift), child);
        gfn = nextGfn & (-1 << shift);
        sptep = child + (indexBy(gfn, shift) << 3);
        spte = load<u64>(sptep);
        continue;
      }
    }
    // Sideways, else up.
    while (indexBy(gfn, shift) == ENTRIES - 1) {
      if (shift == top) break;
      shift += 9;
      gfn &= -1 << shift;
      sptep = load<usize>(pathPtr(shift)) + (indexBy(gfn, shift) << 3);
      spte = load<u64>(sptep);
    }
    gfn += 1 << shift;
    nextGfn = gfn;
    sptep += 8;
    spte = load<u64>(sptep);
  }
  leafs += changed;
  accessed += young;
  dirty += written;
}
/** A fault for each page, as kvm_tdp_mmu_map() walks. */
function iterMap(start: u64, end: u64): void {
  let mapped: u64 = 0;
  for (let page = start; page < end; page++) {
    let shift = shiftOf(rootLevel);
    let sptep = root + (indexBy(page, shift) << 3);
    let spte = load<u64>(sptep);
    store<usize>(pathPtr(shift), root);
    while (shift != 0) {
      spte = load<u64>(sptep);
      shift -= 9;
      const child = tableOf(spte);
      store<usize>(pathPtr(shift), child);
      sptep = child + (indexBy(page, shift) << 3);
      spte = load<u64>(sptep);
    }
    if (spte & SPTE_PRESENT) continue;
    store<u64>(sptep, leafOf(page, DENSITY_FULL, 0));
    mapped++;
  }
  leafs += mapped;
}
/** Writes the 512 entries that a leaf of 2M becomes. Returns what links their table. */
function splitTable(spte: u64): u64 {
  const table = takeTable();
  const first = spte & ~SPTE_HUGE;
  for (let at: usize = 0; at < ENTRIES; at++) store<u64>(table + (at << 3), first + ((<u64>at) << 12));
  return linkTo(table);
}
function freeTable(table: usize): void {
  store<u64>(table, freeTables);
  freeTables = table;
}
/** Entry by entry, as handle_removed_pt() takes a table down. */
function iterFree(table: usize, at: i32): void {
  for (let ptr = table; ptr < table + (ENTRIES << 3); ptr += 8) {
    const spte = load<u64>(ptr);
    store<u64>(ptr, 0);
    if ((spte & SPTE_PRESENT) == 0) continue;
    if (isLeaf(spte, at)) countLeaf(spte);
    else iterFree(tableOf(spte), at - 1);
  }
  if (at != rootLevel) freeTable(table);
}

// --- nested ----------------------------------------------------------------------------------------------------------

function zapTable(table: usize, from: usize, to: usize): void {
  let zapped: u64 = 0;
  let young: u64 = 0;
  let written: u64 = 0;
  const end = table + (to << 3);
  for (let ptr = table + (from << 3); ptr < end; ptr += 8) {
    const spte = load<u64>(ptr);
    zapped += (spte >> 11) & 1;
    young += (spte >> 8) & 1;
    written += (spte >> 9) & 1;
    store<u64>(ptr, 0);
  }
  leafs += zapped;
  accessed += young;
  dirty += written;
}
/** Of a table that goes: nobody reads it again. */
function countTable(table: usize): void {
  let present: u64 = 0;
  for (let ptr = table; ptr < table + (ENTRIES << 3); ptr += 8) present += (load<u64>(ptr) >> 11) & 1;
  leafs += present;
}
function clearTable(table: usize, from: usize, to: usize, bit: u64): void {
  let changed: u64 = 0;
  const end = table + (to << 3);
  for (let ptr = table + (from << 3); ptr < end; ptr += 8) {
    const spte = load<u64>(ptr);
    changed += <u64>((spte & bit) != 0);
    store<u64>(ptr, spte & ~bit);
  }
  leafs += changed;
}
function mapTable(table: usize, gfn: u64, from: usize, to: usize): void {
  let mapped: u64 = 0;
  const end = table + (to << 3);
  for (let ptr = table + (from << 3); ptr < end; ptr += 8) {
    const spte = load<u64>(ptr);
    const isAbsent = (spte & SPTE_PRESENT) == 0;
    mapped += <u64>isAbsent;
    store<u64>(ptr, isAbsent ? leafOf(gfn, DENSITY_FULL, 0) : spte);
    gfn++;
  }
  leafs += mapped;
}

function nested(table: usize, at: i32, start: u64, end: u64, op: u32): void {
  const from = indexOf(start, at);
  const to = indexOf(end - 1, at) + 1;
  if (at == 1) {
    if (op == OP_AGE) clearTable(table, from, to, SPTE_ACCESSED);
    else if (op == OP_WRITE_PROTECT || op == OP_SPLIT) clearTable(table, from, to, SPTE_WRITABLE);
    else if (op == OP_MAP) mapTable(table, start, from, to);
    else if (op == OP_FREE) countTable(table);
    else zapTable(table, from, to);
    return;
  }
  const size = pagesOf(at);
  let gfn = start;
  for (let index = from; index < to; index++) {
    const next = min((gfn & ~(size - 1)) + size, end);
    const ptr = table + (index << 3);
    const spte = load<u64>(ptr);
    if (spte & SPTE_PRESENT) {
      if (spte & SPTE_HUGE) {
        if (op == OP_SPLIT) {
          // Split and write-protected at once.
          leafs += spte & SPTE_WRITABLE ? ENTRIES : 0;
          store<u64>(ptr, splitTable(spte & ~SPTE_WRITABLE));
        } else if (op == OP_AGE || op == OP_WRITE_PROTECT) {
          const bit = op == OP_AGE ? SPTE_ACCESSED : SPTE_WRITABLE;
          leafs += <u64>((spte & bit) != 0);
          store<u64>(ptr, spte & ~bit);
        } else if (op != OP_MAP) {
          countLeaf(spte);
          store<u64>(ptr, 0);
        }
      } else {
        nested(tableOf(spte), at - 1, gfn, next, op);
        if (op == OP_FREE) {
          store<u64>(ptr, 0);
          freeTable(tableOf(spte));
        }
      }
    }
    gfn = next;
  }
}

// --- Building --------------------------------------------------------------------------------------------------------

const DENSITY_FULL: u32 = 0;
const DENSITY_HALF: u32 = 1;
const DENSITY_FRAGMENTED: u32 = 2;
// Every second page, as native.c.
const DENSITY_ALTERNATE: u32 = 3;
const LEAVES_MIXED: i32 = 3;

function hash(value: u32, seed: u32): u32 {
  let x = value * 0x9e3779b1 + seed;
  x = (x ^ (x >> 16)) * 0x85ebca6b;
  x = (x ^ (x >> 13)) * 0xc2b2ae35;
  return x ^ (x >> 16);
}
function leafOf(index: u64, density: u32, seed: u32): u64 {
  const spte = ((index << 12) & SPTE_PFN_MASK) | SPTE_PRESENT | SPTE_LINK | SPTE_DIRTY;
  if (density == DENSITY_FULL) return spte | SPTE_ACCESSED;
  if (density == DENSITY_ALTERNATE) return index & 1 ? 0 : spte | SPTE_ACCESSED;
  const bits = hash(<u32>index, seed);
  if (density == DENSITY_HALF && (bits & 1) == 0) return 0;
  if (density == DENSITY_FRAGMENTED && (hash(<u32>(index >> 4), seed) & 3) == 0) return 0;
  return bits & 2 ? spte | SPTE_ACCESSED : spte;
}
function leafLevelAt(gfn: u64): i32 {
  return leafLevel == LEAVES_MIXED ? (gfn < pages / 2 ? 2 : 1) : leafLevel;
}
function takeTable(): usize {
  const table = ARENA + used;
  used += 4096;
  return table;
}
function allocTable(): usize {
  const table = takeTable();
  memory.fill(table, 0, 4096);
  return table;
}
function linkTo(table: usize): u64 {
  return <u64>(table - ARENA) | SPTE_LINK | SPTE_PRESENT;
}
function linkTables(): void {
  used = 0;
  freeTables = 0;
  root = allocTable();
  for (let gfn: u64 = 0; gfn < pages; gfn += pagesOf(leafLevelAt(gfn) + 1)) {
    let table = root;
    for (let at = rootLevel; at > leafLevelAt(gfn); at--) {
      const ptr = table + (indexOf(gfn, at) << 3);
      if (load<u64>(ptr) == 0) store<u64>(ptr, linkTo(allocTable()));
      table = tableOf(load<u64>(ptr));
    }
  }
  linked = used;
}

export function build(npages: f64, leaves: i32): void {
  pages = <u64>npages;
  leafLevel = leaves;
  rootLevel = 4;
  linkTables();
}
export function fill(density: u32, seed: u32): void {
  if (freeTables != 0) linkTables();
  used = linked;
  let gfn: u64 = 0;
  while (gfn < pages) {
    let table = root;
    const lowest = leafLevelAt(gfn);
    for (let at = rootLevel; at > lowest; at--) table = tableOf(load<u64>(table + (indexOf(gfn, at) << 3)));
    for (let at: usize = 0; at < ENTRIES && gfn < pages; at++) {
      const spte = leafOf(gfn >> (9 * (lowest - 1)), density, seed);
      store<u64>(table + (at << 3), spte != 0 && lowest > 1 ? spte | SPTE_HUGE : spte);
      gfn += pagesOf(lowest);
    }
  }
}

function look(gfn: u64): u32 {
  let table = root;
  let at = rootLevel;
  let spte = load<u64>(table + (indexOf(gfn, at) << 3));
  while ((spte & SPTE_PRESENT) != 0 && !isLeaf(spte, at)) {
    table = tableOf(spte);
    at--;
    spte = load<u64>(table + (indexOf(gfn, at) << 3));
  }
  if ((spte & SPTE_PRESENT) == 0) return 0;
  const isReadOnly: u32 = spte & SPTE_WRITABLE ? 0 : 8;
  return 1 | ((<u32>((spte >> 8) & 1)) << 1) | ((<u32>((spte >> 9) & 1)) << 2) | isReadOnly;
}

// --- Commands --------------------------------------------------------------------------------------------------------

function walk(useNested: bool, op: u32, start: u64, end: u64): void {
  if (useNested) {
    nested(root, rootLevel, start, end, op);
    return;
  }
  // What is split is logged from then on: two walks, as in native.c.
  if (op == OP_SPLIT) iterate<Split>(start, end);
  if (op == OP_ZAP) iterate<Zap>(start, end);
  else if (op == OP_AGE) iterate<Age>(start, end);
  else if (op == OP_WRITE_PROTECT || op == OP_SPLIT) iterate<WriteProtect>(start, end);
  else if (op == OP_MAP) iterMap(start, end);
  else iterFree(root, rootLevel);
}
export function lookAll(gfns: u32): void {
  looked = 0;
  for (let at: u32 = 0; at < gfns; at++) {
    looked += <u64>look(<u64>load<u32>(GFNS + ((<usize>at) << 2))) * <u64>(at + 1);
  }
}
export function whole(useNested: bool, op: u32, gfns: u32): void {
  resetCounts();
  walk(useNested, op, 0, pages);
  lookAll(gfns);
}
/** `npages` is a power of two. */
export function ranges(useNested: bool, op: u32, npages: f64, gfns: u32): void {
  resetCounts();
  looked = 0;
  const length = <u64>npages;
  for (let at: u32 = 0; at < gfns; at++) {
    const start = <u64>load<u32>(GFNS + ((<usize>at) << 2));
    walk(useNested, op, start, start + length);
    looked += <u64>look(start + (<u64>at & (length - 1)));
  }
}
/** Zaps `npages` from `gfn` on. Returns how many records that made, from GFNS on. */
export function traced(gfn: f64, npages: f64): u32 {
  recordPtr = GFNS;
  iterate<Trace>(<u64>gfn, <u64>gfn + <u64>npages);
  return <u32>((recordPtr - GFNS) >> 4);
}
/** One page, for a caller that has one at a time. Returns whether it changed. */
export function one(op: u32, gfn: f64): bool {
  const before = leafs;
  walk(false, op, <u64>gfn, <u64>gfn + 1);
  return leafs != before;
}
