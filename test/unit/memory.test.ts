// How much engine memory large guests take: a snapshot's length.

import { describe, expect, test } from 'vitest';
import { createVmSync, type Vm } from '../../src/index.ts';
import { isDebugBuild, PAGE, SLOT_HVA } from '../support/make-vm.ts';
import { randomFrom } from '../support/random.ts';

const MIB = 2 ** 20;
const TIB = 2 ** 40;
// The debug build is slow: it holds an eighth of the guest to an eighth of the bound.
const SHARE = isDebugBuild ? 8 : 1;
const GUEST = TIB / SHARE;
const PAGES = GUEST / PAGE;

/** Alternating runs of random length that cover [0, npages): every 2M table has some of both kinds. */
function forRandomRuns(seed: string, npages: number, meanPages: number, visit: (start: number, end: number) => void) {
  const random = randomFrom(seed);
  let gfn = 0;
  for (;;) {
    gfn += 1 + Math.floor(random() * (2 * meanPages - 1));
    const end = Math.min(gfn + 1 + Math.floor(random() * (2 * meanPages - 1)), npages);
    if (gfn >= end) return;
    visit(gfn, end);
    gfn = end;
  }
}

/** Maps the slots' memory writable, page by page, and has the guest write it all. */
function populate(vm: Vm, bytes: number): void {
  vm.host.access({ hva: SLOT_HVA, length: bytes, write: true });
  for (let left = { gpa: 0n, size: BigInt(bytes) }; left.size > 0n; ) left = vm.vcpus[0].preFaultMemory(left);
  expect(vm.vcpus[0].access({ gpa: 0, kind: 'write', count: bytes / PAGE }).reason).toBe('done');
  expect(countLeafs(vm)).toBe(bytes / PAGE);
}

const countLeafs = (vm: Vm) => vm.stats().pages_4k;

describe('engine memory', () => {
  test('a new VM of 1 TiB takes under a megabyte, at once', () => {
    const start = performance.now();
    const vm = createVmSync({ memory: TIB, debug: isDebugBuild });
    expect(performance.now() - start).toBeLessThan(1000);
    expect(vm.memoryUsed).toBeLessThan(MIB);
    expect(vm.snapshot().length).toBe(vm.memoryUsed);
  });

  test('a plain guest of 1 TiB, all 4K, half of it zapped at random, takes under 300 MiB', () => {
    const vm = createVmSync({ memory: GUEST, debug: isDebugBuild });
    vm.host.mmap({ kind: 'anon4k', hva: SLOT_HVA, length: GUEST });
    vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: GUEST, userspaceAddr: SLOT_HVA });
    populate(vm, GUEST);
    expect(vm.memoryUsed, 'uniform').toBeLessThan(MIB);
    let zapped = 0;
    forRandomRuns('plain', PAGES, 170, (start, end) => {
      vm.unmapGfnRange({ slot: 0, start, end });
      zapped += end - start;
    });
    expect(countLeafs(vm)).toBe(PAGES - zapped);
    expect(zapped / PAGES).toBeCloseTo(0.5, 2);
    expect(vm.memoryUsed).toBeLessThan((300 * MIB) / SHARE);
    // Part of what is left ages: Accessed differs, too.
    forRandomRuns('plain again', PAGES / 8, 170, (start, end) => {
      vm.ageGfn({ slot: 0, start, end });
    });
    expect(vm.memoryUsed).toBeLessThan((300 * MIB) / SHARE);
    vm.zapGfnRange(0, PAGES);
    expect(countLeafs(vm)).toBe(0);
  });

  test('a TD of 1 TiB with attributes, residency and contents fragmented takes under 600 MiB', () => {
    const vm = createVmSync({ type: 'tdx', memory: GUEST, debug: isDebugBuild });
    vm.host.mmap({ kind: 'anon4k', hva: SLOT_HVA, length: GUEST });
    const file = vm.createGuestMemfd({ size: GUEST });
    vm.setUserMemoryRegion2({
      slot: 0,
      flags: 4,
      guestPhysAddr: 0,
      memorySize: GUEST,
      userspaceAddr: SLOT_HVA,
      guestMemfd: file.fd,
    });
    vm.host.access({ hva: SLOT_HVA, length: GUEST, write: true });
    vm.setMemoryAttributes({ address: 0, size: GUEST, attributes: 8 });
    expect(vm.vcpus[0].accept({ gpa: 0, size: GUEST })).toBe(PAGES);
    expect(vm.memoryUsed, 'uniform').toBeLessThan(MIB);
    const shared = 2 ** 47;
    forRandomRuns('td', PAGES, 340, (start, end) => {
      vm.setMemoryAttributes({ address: start * PAGE, size: (end - start) * PAGE, attributes: 0 });
      // A third of what became shared is punched out of the file, and mapped shared.
      const third = Math.max(Math.floor((end - start) / 3), 1);
      file.punchHole(start * PAGE, third * PAGE);
      vm.vcpus[0].preFaultMemory({ gpa: start * PAGE, size: third * PAGE });
      vm.vcpus[0].access({ gpa: shared + start * PAGE, kind: 'write', count: third });
    });
    const stats = vm.stats();
    expect(stats.pages_4k).toBeGreaterThan(PAGES * 0.6);
    expect(stats.private_pages_lost).toBeGreaterThan(PAGES * 0.45);
    expect(vm.memoryUsed).toBeLessThan((600 * MIB) / SHARE);
  });

  test('a uniform guest of 64 TiB takes under 256 MiB', () => {
    const vm = createVmSync({ memory: 64 * TIB, debug: isDebugBuild });
    // KVM takes at most 2^31 - 1 pages a slot.
    for (let slot = 0; slot < 16; slot++) {
      const userspaceAddr = SLOT_HVA + slot * 4 * TIB;
      vm.host.mmap({ kind: 'anon4k', hva: userspaceAddr, length: 4 * TIB });
      vm.setUserMemoryRegion({ slot, guestPhysAddr: slot * 4 * TIB, memorySize: 4 * TIB, userspaceAddr });
    }
    populate(vm, 64 * TIB);
    expect(vm.memoryUsed).toBeLessThan(256 * MIB);
    vm.host.munmap({ hva: SLOT_HVA, length: 64 * TIB });
    expect(countLeafs(vm)).toBe(0);
    expect(vm.memoryUsed).toBeLessThan(256 * MIB);
  });
});
