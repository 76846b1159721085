// How large a guest fits one 4 GiB memory, and how many bytes does a page cost?

import type { Vm } from '../src/index.ts';
import { api } from './peers/eptsim.ts';
import { type BenchContext, type Goal, type Row, row } from './rows.ts';
import { GIB, hash, PAGE, SEED, TIB } from './workloads.ts';

const HVA = 2 ** 44;
/** KVM takes at most 2^31 - 1 pages a slot: larger guests have several. */
const SLOT_BYTES = 4 * TIB;

function vmWith(bytes: number, options: { slots?: number; flags?: number } = {}): Vm {
  const vm = api.createVmSync({ memory: bytes });
  vm.host.mmap({ hva: HVA, length: bytes, kind: 'shmem' });
  vm.host.access({ hva: HVA, length: bytes, write: true });
  const slotBytes = Math.min(SLOT_BYTES, bytes);
  for (let slot = 0; slot * slotBytes < bytes; slot++) {
    vm.setUserMemoryRegion({
      slot,
      flags: options.flags ?? 0,
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

/** Pages that a pattern of 16 leaf tables maps: the pattern is touched page by page, then the tables are alike in cost. */
function mapHalf(vm: Vm, bytes: number): number {
  const vcpu = vm.vcpus[0];
  let mapped = 0;
  for (let gfn = 0; gfn < bytes / PAGE; gfn++) {
    const bits = hash(gfn, SEED);
    if ((bits & 1) === 0) continue;
    vcpu.access({ gpa: gfn * PAGE, kind: bits & 2 ? 'write' : 'read' });
    mapped++;
  }
  return mapped;
}

/** Half of the pages at random, by strides: each of `strides` coprime steps leaves its own pattern in every table. */
function mapStrided(vm: Vm, bytes: number): void {
  const pages = bytes / PAGE;
  for (const [first, stride, kind] of [
    [0, 3, 'write'],
    [1, 5, 'read'],
    [2, 7, 'write'],
  ] as const) {
    const count = Math.floor((pages - first - 1) / stride) + 1;
    const exit = vm.vcpus[0].access({ gpa: first * PAGE, kind, stride: stride * PAGE, count });
    if (exit.done !== count) throw new Error(`scale: ${exit.done} of ${count} pages were touched: ${exit.reason}`);
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
  const smallPages = small / PAGE;
  for (const [planes, goal] of [
    [0, 'bytes per guest 4K page, uniform'],
    [4, 'bytes per guest 4K page, mixed, up to four planes'],
    [8, 'bytes per guest 4K page, mixed, eight planes'],
  ] as const) {
    const vm = vmWith(small);
    const empty = vm.memoryUsed;
    if (planes === 0) vm.vcpus[0].access({ gpa: 0, kind: 'write', size: small });
    else {
      mapHalf(vm, small);
      vm.ageGfn({ slot: 0, start: 0, end: smallPages });
      // Half of what is mapped is young again: now present, accessed and dirty all differ.
      for (let gfn = 0; gfn < smallPages; gfn++) {
        const bits = hash(gfn, SEED);
        if ((bits & 5) === 5) vm.vcpus[0].access({ gpa: gfn * PAGE, kind: 'read' });
      }
      if (planes === 8) makeEight(vm, small);
    }
    const bytesPerPage = (vm.memoryUsed - empty) / smallPages;
    put(small, planes === 0 ? 'full' : 'half', 'bytes-per-page', planes, { bytesPerPage, bytes: vm.memoryUsed }, goal);
    say(`${small / GIB} GiB, ${planes} planes: ${bytesPerPage.toFixed(3)} bytes a page`);
  }

  // --- The largest guests ---
  const half = quick ? 16 * GIB : 8 * TIB;
  const uniform = quick ? TIB : 64 * TIB;
  for (const bytes of [uniform, half]) {
    const density = bytes === uniform ? 'full' : 'half';
    const vm = vmWith(bytes);
    const empty = vm.memoryUsed;
    const start = performance.now();
    if (bytes === uniform) vm.vcpus[0].access({ gpa: 0, kind: 'write', size: bytes });
    else mapStrided(vm, bytes);
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
    put(bytes, density, 'zap-whole', bytes === uniform ? 0 : 2, values, goal);
    say(`${bytes / TIB} TiB ${density}: ${note}; zapped in ${ms.toFixed(3)} ms`);
  }
  return rows;
}

/** Lets five more bits of the leaf tables differ: writable, host-writable, MMU-writable, executable and kind. */
function makeEight(vm: Vm, bytes: number): void {
  // Read-only host pages change what their sptes may do; each page of a hash's choice is protected for itself.
  for (let gfn = 0; gfn < bytes / PAGE; gfn += 1) {
    const bits = hash(gfn, SEED + 1);
    if ((bits & 255) !== 0) continue;
    vm.host.mprotect({ hva: HVA + gfn * PAGE, length: PAGE, prot: 1 });
    if (hash(gfn, SEED) & 1) vm.vcpus[0].access({ gpa: gfn * PAGE, kind: 'read' });
  }
}
