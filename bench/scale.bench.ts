// How large a guest fits one 4 GiB memory, and how many bytes does a page cost?

import type { Vm } from '../src/index.ts';
import { api, mapAll } from './peers/eptsim.ts';
import { type BenchContext, type Goal, type Row, row } from './rows.ts';
import { GIB, hash, PAGE, SEED, TIB } from './workloads.ts';

const HVA = 2 ** 44;
/** KVM takes at most 2^31 - 1 pages a slot: larger guests have several. */
const SLOT_BYTES = 4 * TIB;
const MEM_LOG_DIRTY_PAGES = 1;

/** Manual dirty logging from the start, so that the log can be cleared in part and nothing is write-protected at once. */
function vmWith(bytes: number): Vm {
  const vm = api.createVmSync({ memory: bytes });
  vm.enableCap({ cap: 168, args: [3] });
  vm.host.mmap({ hva: HVA, length: bytes, kind: 'shmem' });
  vm.host.access({ hva: HVA, length: bytes, write: true });
  const slotBytes = Math.min(SLOT_BYTES, bytes);
  for (let slot = 0; slot * slotBytes < bytes; slot++) {
    vm.setUserMemoryRegion({
      slot,
      flags: MEM_LOG_DIRTY_PAGES,
      guestPhysAddr: slot * slotBytes,
      memorySize: Math.min(slotBytes, bytes - slot * slotBytes),
      userspaceAddr: HVA + slot * slotBytes,
    });
  }
  return vm;
}

function zapAll(vm: Vm, bytes: number): { ms: number; zapped: number } {
  const before = vm.stat('leafs_zapped_direct_4k');
  const start = performance.now();
  vm.zapGfnRange(0, bytes / PAGE);
  return { ms: performance.now() - start, zapped: vm.stat('leafs_zapped_direct_4k') - before };
}

/**
 * Makes the leaf tables of a mapped guest differ in present, accessed and writable or dirty: a random half of the pages is
 * zapped, a random half of all aged, and the dirty log clears a random pattern.
 */
function diverge(vm: Vm, bytes: number): void {
  const slotPages = Math.min(SLOT_BYTES, bytes) / PAGE;
  for (let gfn = 0; gfn < bytes / PAGE; gfn++) {
    const bits = hash(gfn, SEED);
    const slot = Math.floor(gfn / slotPages);
    if ((bits & 1) === 0) vm.unmapGfnRange({ slot, start: gfn, end: gfn + 1 });
    if ((bits & 2) === 0) vm.ageGfn({ slot, start: gfn, end: gfn + 1 });
  }
  clearLog(vm, bytes);
}

/**
 * As diverge() for a guest of billions of pages: each page is zapped with a chance of 1/2, but neighbours in one call, and
 * of each leaf table a run of 256 pages at a random place is aged.
 */
function divergeByRuns(vm: Vm, bytes: number): void {
  const slotPages = Math.min(SLOT_BYTES, bytes) / PAGE;
  const range = { slot: 0, start: 0, end: 0 };
  for (let gfn = 0; gfn < bytes / PAGE; gfn += 32) {
    range.slot = Math.floor(gfn / slotPages);
    let bits = hash(gfn / 32, SEED);
    if (gfn % 512 === 0) {
      range.start = gfn + (bits >>> 24);
      range.end = range.start + 256;
      vm.ageGfn(range);
    }
    let at = gfn;
    while (bits !== 0) {
      const zeros = lowZeros(bits);
      const ones = lowZeros(~(bits >>> zeros));
      range.start = at + zeros;
      range.end = range.start + ones;
      vm.unmapGfnRange(range);
      at = range.end;
      bits = zeros + ones === 32 ? 0 : bits >>> (zeros + ones);
    }
  }
  clearLog(vm, bytes);
}
/** How many of the lowest bits are 0; 32 of 0. */
const lowZeros = (bits: number): number => (bits === 0 ? 32 : 31 - Math.clz32(bits & -bits));

function clearLog(vm: Vm, bytes: number): void {
  const slotPages = Math.min(SLOT_BYTES, bytes) / PAGE;
  for (let slot = 0; slot * slotPages < bytes / PAGE; slot++) {
    vm.clearDirtyLog({ slot, firstPage: 0, numPages: slotPages, bitmap: 0x5bd1e995_0badf00dn });
  }
}

/** What divergeInMore() does to the host's page table. */
function touchOnHost(vm: Vm, bytes: number): void {
  for (const young of [false, true]) {
    for (let gfn = 0; gfn < bytes / PAGE; gfn++) {
      const bits = hash(gfn, SEED);
      if ((bits & 1) === 0 || ((bits & 2) === 0) === young) continue;
      vm.host.access({ hva: HVA + gfn * PAGE, length: PAGE, write: (bits & 4) !== 0 });
    }
  }
}

export default async function scale({ quick, say }: BenchContext): Promise<Row[]> {
  const rows: Row[] = [];
  const put = (
    guestBytes: number,
    density: string,
    operation: string,
    planes: number,
    values: Partial<Row>,
    goal: Goal | null,
  ) =>
    rows.push(row({ question: 'scale', guestBytes, density, operation, planes, contender: 'eptsim', goal, ...values }));

  // --- Bytes a page, by how many planes differ ---
  const small = (quick ? 1 : 16) * GIB;
  for (const [planes, goal] of [
    [0, 'bytes per guest 4K page, uniform'],
    [4, 'bytes per guest 4K page, mixed, up to four planes'],
    [8, 'bytes per guest 4K page, mixed, eight planes'],
  ] as const) {
    const vm = planes === 8 ? vmOfZeroPages(small) : vmWith(small);
    const empty = vm.memoryUsed;
    if (planes !== 8) mapAll(vm, small);
    if (planes === 4) diverge(vm, small);
    if (planes === 8) divergeInMore(vm, small);
    // The same to the host and the dirty log alone, with no page tables of KVM: what those take of their own.
    const bare = planes === 8 ? vmOfZeroPages(small) : vmWith(small);
    if (planes === 4) clearLog(bare, small);
    if (planes === 8) touchOnHost(bare, small);
    const pages = small / PAGE;
    const bytesPerPage = (vm.memoryUsed - bare.memoryUsed) / pages;
    const withAll = (vm.memoryUsed - empty) / pages;
    const note = `page tables alone; ${withAll.toFixed(3)} with the host's and the dirty log's`;
    put(
      small,
      planes === 0 ? 'full' : 'half',
      'bytes-per-page',
      planes,
      { bytesPerPage, bytes: vm.memoryUsed, note },
      goal,
    );
    say(`${small / GIB} GiB, ${planes} planes: ${bytesPerPage.toFixed(3)} bytes a page (${note})`);
  }

  // --- The largest guests ---
  const half = quick ? 16 * GIB : 8 * TIB;
  const uniform = quick ? TIB : 64 * TIB;
  for (const bytes of [uniform, half]) {
    const density = bytes === uniform ? 'full' : 'half';
    const vm = vmWith(bytes);
    const empty = vm.memoryUsed;
    const start = performance.now();
    mapAll(vm, bytes);
    if (bytes === half) divergeByRuns(vm, bytes);
    const mapMs = performance.now() - start;
    const mapped = vm.stat('pages_4k');
    const used = vm.memoryUsed;
    const { ms, zapped } = zapAll(vm, bytes);
    if (zapped !== mapped) throw new Error(`scale: ${zapped} of ${mapped} leaves were zapped`);
    const pages = bytes / PAGE;
    const note = `${mapped} leaves mapped in ${(mapMs / 1000).toFixed(2)} s, memory ${(used / 2 ** 30).toFixed(2)} GiB`;
    const goal: Goal | null = quick ? null : 'largest guest in one 4 GiB memory, all 4K';
    const values = {
      nsPerOperation: ms * 1e6,
      nsPerPage: (ms * 1e6) / pages,
      bytesPerPage: (used - empty) / pages,
      note,
    };
    put(bytes, density, 'zap-whole', bytes === uniform ? 0 : 3, values, goal);
    say(`${bytes / TIB} TiB ${density}: ${note}; zapped in ${ms.toFixed(3)} ms`);
  }
  return rows;
}

/** A guest of anonymous memory that nobody wrote: what its vCPU reads is the zero page, mapped read-only. */
function vmOfZeroPages(bytes: number): Vm {
  const vm = api.createVmSync({ memory: bytes });
  vm.host.mmap({ hva: HVA, length: bytes, kind: 'anon4k' });
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: bytes, userspaceAddr: HVA });
  return vm;
}

/** Present, writable, accessed, dirty, host-writable and MMU-writable differ: read or written or neither, at random. */
function divergeInMore(vm: Vm, bytes: number): void {
  for (const young of [false, true]) {
    for (let gfn = 0; gfn < bytes / PAGE; gfn++) {
      const bits = hash(gfn, SEED);
      if ((bits & 1) === 0 || ((bits & 2) === 0) === young) continue;
      vm.vcpus[0].access({ gpa: gfn * PAGE, kind: bits & 4 ? 'write' : 'read' });
    }
    if (!young) vm.ageGfn({ slot: 0, start: 0, end: bytes / PAGE });
  }
}
