// Layout A in AssemblyScript: the same algorithms as bench/peers/native.c, step by step, so that the ratio of the two says
// what WebAssembly costs and nothing else. Compiled by bench/peers/layout-a-wasm.ts.

const ENTRIES: u32 = 512;
const SPTE_LINK: u64 = 7;
const SPTE_HUGE: u64 = 1 << 7;
const SPTE_ACCESSED: u64 = 1 << 8;
const SPTE_DIRTY: u64 = 1 << 9;
const SPTE_PRESENT: u64 = 1 << 11;
const SPTE_PFN_MASK: u64 = 0x000ffffffffff000;
const ARENA: usize = 1 << 25;
/** Where the caller puts u32 gfns. */
export const GFNS: usize = 65536;
export const GFNS_MAX: u32 = 1 << 22;

let pages: u64 = 0;
let rootLevel: i32 = 4;
let root: usize = 0;
let used: usize = 0;
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
// each walk has the steps written out over locals. `shift` stands for the level: 9 bits each. The path stays in memory.
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
function noteLeafs(zapped: u64, young: u64, written: u64): void {
  leafs += zapped;
  accessed += young;
  dirty += written;
}
function iterZap(start: u64, end: u64): void {
  const top = shiftOf(rootLevel);
  let zapped: u64 = 0;
  let young: u64 = 0;
  let written: u64 = 0;
  let shift = top;
  let nextGfn = start;
  let gfn = start & (-1 << shift);
  store<usize>(pathPtr(shift), root);
  let sptep = root + (indexBy(gfn, shift) << 3);
  let spte = load<u64>(sptep);
  while (gfn < end) {
    if ((spte & SPTE_PRESENT) != 0 && isLeafBy(spte, shift)) {
      zapped++;
      young += (spte >> 8) & 1;
      written += (spte >> 9) & 1;
      store<u64>(sptep, 0);
    }
    // Down.
    if (shift != 0) {
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
      if (shift == top) {
        noteLeafs(zapped, young, written);
        return;
      }
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
  noteLeafs(zapped, young, written);
}
function iterAge(start: u64, end: u64): void {
  const top = shiftOf(rootLevel);
  let young: u64 = 0;
  let shift = top;
  let nextGfn = start;
  let gfn = start & (-1 << shift);
  store<usize>(pathPtr(shift), root);
  let sptep = root + (indexBy(gfn, shift) << 3);
  let spte = load<u64>(sptep);
  while (gfn < end) {
    if ((spte & SPTE_ACCESSED) != 0 && isLeafBy(spte, shift)) {
      young++;
      store<u64>(sptep, spte & ~SPTE_ACCESSED);
    }
    // Down.
    if (shift != 0) {
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
      if (shift == top) {
        noteLeafs(0, young, 0);
        return;
      }
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
  noteLeafs(0, young, 0);
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
function ageTable(table: usize, from: usize, to: usize): void {
  let young: u64 = 0;
  const end = table + (to << 3);
  for (let ptr = table + (from << 3); ptr < end; ptr += 8) {
    const spte = load<u64>(ptr);
    young += (spte >> 8) & 1;
    store<u64>(ptr, spte & ~SPTE_ACCESSED);
  }
  accessed += young;
}
function nested(table: usize, at: i32, start: u64, end: u64, age: bool): void {
  const from = indexOf(start, at);
  const to = indexOf(end - 1, at) + 1;
  if (at == 1) {
    if (age) ageTable(table, from, to);
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
      if ((spte & SPTE_HUGE) == 0) {
        nested(tableOf(spte), at - 1, gfn, next, age);
      } else if (age) {
        accessed += (spte >> 8) & 1;
        store<u64>(ptr, spte & ~SPTE_ACCESSED);
      } else {
        countLeaf(spte);
        store<u64>(ptr, 0);
      }
    }
    gfn = next;
  }
}

// --- Building --------------------------------------------------------------------------------------------------------

const DENSITY_FULL: u32 = 0;
const DENSITY_HALF: u32 = 1;
const DENSITY_FRAGMENTED: u32 = 2;
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
  const bits = hash(<u32>index, seed);
  if (density == DENSITY_HALF && (bits & 1) == 0) return 0;
  if (density == DENSITY_FRAGMENTED && (hash(<u32>(index >> 4), seed) & 3) == 0) return 0;
  return bits & 2 ? spte | SPTE_ACCESSED : spte;
}
function leafLevelAt(gfn: u64): i32 {
  return leafLevel == LEAVES_MIXED ? (gfn < pages / 2 ? 2 : 1) : leafLevel;
}
function allocTable(): usize {
  const table = ARENA + used;
  used += 4096;
  memory.fill(table, 0, 4096);
  return table;
}

export function build(npages: f64, leaves: i32): void {
  pages = <u64>npages;
  leafLevel = leaves;
  rootLevel = 4;
  used = 0;
  root = allocTable();
  for (let gfn: u64 = 0; gfn < pages; gfn += pagesOf(leafLevelAt(gfn) + 1)) {
    let table = root;
    for (let at = rootLevel; at > leafLevelAt(gfn); at--) {
      const ptr = table + (indexOf(gfn, at) << 3);
      if (load<u64>(ptr) == 0) {
        const child = allocTable();
        store<u64>(ptr, <u64>(child - ARENA) | SPTE_LINK | SPTE_PRESENT);
      }
      table = tableOf(load<u64>(ptr));
    }
  }
}
export function fill(density: u32, seed: u32): void {
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
  return 1 | ((<u32>((spte >> 8) & 1)) << 1) | ((<u32>((spte >> 9) & 1)) << 2);
}

// --- Commands --------------------------------------------------------------------------------------------------------

function walk(useNested: bool, age: bool, start: u64, end: u64): void {
  if (useNested) nested(root, rootLevel, start, end, age);
  else if (age) iterAge(start, end);
  else iterZap(start, end);
}
export function lookAll(gfns: u32): void {
  looked = 0;
  for (let at: u32 = 0; at < gfns; at++) {
    looked += <u64>look(<u64>load<u32>(GFNS + ((<usize>at) << 2))) * <u64>(at + 1);
  }
}
export function whole(useNested: bool, age: bool, gfns: u32): void {
  resetCounts();
  walk(useNested, age, 0, pages);
  lookAll(gfns);
}
export function ranges(useNested: bool, age: bool, npages: f64, gfns: u32): void {
  resetCounts();
  looked = 0;
  const length = <u64>npages;
  for (let at: u32 = 0; at < gfns; at++) {
    const start = <u64>load<u32>(GFNS + ((<usize>at) << 2));
    walk(useNested, age, start, start + length);
    looked += <u64>look(start + (<u64>at % length));
  }
}
