// Guests whose leaf tables differ in as many flags as can be, and what they cost without the page tables of KVM.
//
// A leaf of 4 KiB has eight flags (assembly/spte.ts), of which at most seven differ in one guest: pages of 4 KiB are never
// without execute permission, which nx_huge_pages takes from huge ones alone. What a guest takes beside KVM's page tables
// (the host's, the dirty log, attributes, the pages of a guest_memfd) is had by doing the same to a second VM that maps
// nothing.

import type { GuestMemfd, Vm } from '../src/index.ts';
import { api, mapAll } from './peers/eptsim.ts';
import { hash, PAGE, random, SEED, TIB } from './workloads.ts';

const HVA = 2 ** 44;
/** KVM takes at most 2^31 - 1 pages a slot: larger guests have several. */
const SLOT_BYTES = 4 * TIB;
const MEM_LOG_DIRTY_PAGES = 1;
const MEM_GUEST_MEMFD = 4;
const PRIVATE = 8;

/** Tables whose sptes are read to see what differs. */
const TABLES = 64;
/** Bits 3 to 9 of what Vm.sptes() returns, by what differs where they do. */
const FLAGS = ['writable', 'accessed', 'dirty', 'host-writable', 'MMU-writable', 'executable', 'private'];

/** In which flags sptes of one leaf table differ, in any of 64 tables at seeded places: those that have a plane. */
export function planesOf(vm: Vm, bytes: number): string[] {
  const next = random(SEED);
  let differing = 0;
  let someAbsent = false;
  for (let table = 0; table < TABLES; table++) {
    const first = Math.floor((next() * bytes) / PAGE / 512) * 512;
    const codes = vm.sptes(Float64Array.from({ length: 512 }, (_, at) => first + at));
    const leafs = codes.filter((code) => (code & 7) === 4);
    someAbsent ||= leafs.length > 0 && leafs.length < 512;
    const or = leafs.reduce((bits, code) => bits | code, 0);
    const and = leafs.reduce((bits, code) => bits & code, -1);
    if (leafs.length > 0) differing |= or & ~and;
  }
  return [...(someAbsent ? ['present'] : []), ...FLAGS.filter((_, at) => (differing >> (3 + at)) & 1)];
}

export interface Storage {
  density: 'full' | 'half';
  /** A VM of this size as it is before anything is mapped. */
  make(bytes: number): Vm;
  /** Maps the guest's pages and makes them differ. */
  map(vm: Vm, bytes: number): void;
  /** To a VM of make(): all that map() changes beside KVM's page tables. */
  mapNothing(vm: Vm, bytes: number): void;
}

// --- Shared memory, dirty logging -----------------------------------------------------------------------------------------

/** Manual dirty logging from the start, so that the log can be cleared in part and nothing is write-protected at once. */
export function vmWithLog(bytes: number): Vm {
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

export function clearLog(vm: Vm, bytes: number): void {
  const slotPages = Math.min(SLOT_BYTES, bytes) / PAGE;
  for (let slot = 0; slot * slotPages < bytes / PAGE; slot++) {
    vm.clearDirtyLog({ slot, firstPage: 0, numPages: slotPages, bitmap: 0x5bd1e995_0badf00dn });
  }
}

/**
 * Makes the leaf tables of a mapped guest differ in present, accessed and writable: a random half of the pages is zapped, a
 * random half of all aged, and the dirty log clears a random pattern.
 */
function diverge(vm: Vm, bytes: number): void {
  for (let gfn = 0; gfn < bytes / PAGE; gfn++) {
    const bits = hash(gfn, SEED);
    if ((bits & 1) === 0) vm.unmapGfnRange({ slot: 0, start: gfn, end: gfn + 1 });
    if ((bits & 2) === 0) vm.ageGfn({ slot: 0, start: gfn, end: gfn + 1 });
  }
  clearLog(vm, bytes);
}

/**
 * As diverge() for a guest of billions of pages: each page is zapped with a chance of 1/2, but neighbours in one call, and
 * of each leaf table a run of 256 pages at a random place is aged.
 */
export function divergeByRuns(vm: Vm, bytes: number): void {
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

/** No flag differs. */
export const UNIFORM: Storage = {
  density: 'full',
  make: vmWithLog,
  map: mapAll,
  mapNothing: () => undefined,
};
/** Three differ, with pages absent: present, writable, accessed. */
export const LOGGED: Storage = {
  density: 'half',
  make: vmWithLog,
  map(vm, bytes) {
    mapAll(vm, bytes);
    diverge(vm, bytes);
  },
  mapNothing: clearLog,
};

// --- Anonymous memory that the host has not touched -----------------------------------------------------------------------

/** What a vCPU reads is the zero page, mapped read-only; what it writes is a page of its own. */
function vmOfZeroPages(bytes: number): Vm {
  const vm = api.createVmSync({ memory: bytes });
  vm.host.mmap({ hva: HVA, length: bytes, kind: 'anon4k' });
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: bytes, userspaceAddr: HVA });
  return vm;
}

/** Four differ, with all pages present: writable, dirty, host-writable, MMU-writable. Each is read or written, at random. */
export const ALL_PRESENT: Storage = {
  density: 'full',
  make: vmOfZeroPages,
  map(vm, bytes) {
    for (let gfn = 0; gfn < bytes / PAGE; gfn++) {
      vm.vcpus[0].access({ gpa: gfn * PAGE, kind: hash(gfn, SEED) & 4 ? 'write' : 'read' });
    }
  },
  mapNothing(vm, bytes) {
    for (let gfn = 0; gfn < bytes / PAGE; gfn++) {
      vm.host.access({ hva: HVA + gfn * PAGE, length: PAGE, write: (hash(gfn, SEED) & 4) !== 0 });
    }
  },
};

// --- The same, a random half of it private --------------------------------------------------------------------------------

const files = new WeakMap<Vm, GuestMemfd>();

function vmOfPrivatePages(bytes: number): Vm {
  const vm = api.createVmSync({ memory: bytes, type: 'sw-protected' });
  vm.host.mmap({ hva: HVA, length: bytes, kind: 'anon4k' });
  const file = vm.createGuestMemfd({ size: bytes });
  files.set(vm, file);
  const place = { slot: 0, guestPhysAddr: 0, memorySize: bytes, userspaceAddr: HVA };
  vm.setUserMemoryRegion2({ ...place, flags: MEM_GUEST_MEMFD, guestMemfd: file.fd, guestMemfdOffset: 0 });
  for (let gfn = 0; gfn < bytes / PAGE; gfn++) {
    if (isPrivate(hash(gfn, SEED))) vm.setMemoryAttributes({ address: gfn * PAGE, size: PAGE, attributes: PRIVATE });
  }
  return vm;
}
const isPrivate = (bits: number): boolean => (bits & 8) !== 0;

/** Each page that is touched, with the bits of its hash: first those that grow old, then `age`, then the young ones. */
function touch(bytes: number, one: (gfn: number, bits: number) => void, age: () => void): void {
  for (const young of [false, true]) {
    for (let gfn = 0; gfn < bytes / PAGE; gfn++) {
      const bits = hash(gfn, SEED);
      if ((bits & 1) !== 0 && ((bits & 2) !== 0) === young) one(gfn, bits);
    }
    if (!young) age();
  }
}

/**
 * Seven differ, all that can: present, writable, accessed, dirty, host-writable, MMU-writable, private. Private pages are read
 * alone: that a guest wrote one stands in the file's own records, which only a mapped page could be made to have.
 */
export const MOST: Storage = {
  density: 'half',
  make: vmOfPrivatePages,
  map(vm, bytes) {
    const one = (gfn: number, bits: number) => {
      vm.vcpus[0].access({ gpa: gfn * PAGE, kind: bits & 4 && !isPrivate(bits) ? 'write' : 'read' });
    };
    touch(bytes, one, () => vm.ageGfn({ slot: 0, start: 0, end: bytes / PAGE }));
  },
  mapNothing(vm, bytes) {
    const file = files.get(vm)!;
    const one = (gfn: number, bits: number) => {
      if (isPrivate(bits)) file.allocate(gfn * PAGE, PAGE);
      else vm.host.access({ hva: HVA + gfn * PAGE, length: PAGE, write: (bits & 4) !== 0 });
    };
    touch(bytes, one, () => undefined);
  },
};
