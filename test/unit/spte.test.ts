// Small questions at small cost: one spte, many, one counter, the trace undecoded.

import { describe, expect, test } from 'vitest';
import { createVmSync, spteMeaning } from '../../src/index.ts';

const HVA = 2 ** 40;
const SIZE = 2 ** 30;

function makeVm(traceRecords = 0) {
  const vm = createVmSync({ memory: SIZE, traceRecords });
  vm.host.mmap({ hva: HVA, length: SIZE, kind: 'anon4k' });
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: SIZE, userspaceAddr: HVA });
  return vm;
}

describe('spte() and sptes()', () => {
  test('show what a walk ends at, an MMIO spte too', () => {
    const vm = makeVm();
    vm.vcpus[0].access({ gpa: 5 * 4096, kind: 'write' });
    vm.vcpus[0].access({ gpa: 6 * 4096, kind: 'read' });
    vm.vcpus[0].access({ gpa: SIZE + 4096, kind: 'read' });
    const gfns = [4, 5, 6, 7, 600, SIZE / 4096 + 1, 2 ** 40];
    for (const gfn of gfns) {
      const walked = vm.walk(BigInt(gfn) * 4096n).at(-1);
      expect(vm.spte(gfn), `gfn ${gfn}`).toEqual(gfn === 2 ** 40 ? spteMeaning(0, false) : walked?.spte);
    }
    const codes = vm.sptes(Float64Array.from(gfns));
    expect([...codes].map((code) => spteMeaning(code & 0xffff, false))).toEqual(gfns.map((gfn) => vm.spte(gfn)));
    expect(codes[1] >>> 16).toBe(1);
  });

  test('show nothing present where no such root is loaded', () => {
    const vm = makeVm();
    expect(vm.spte(0).class).toBe('nonpresent');
    expect([...vm.sptes(Float64Array.of(0, 1))]).toEqual([0, 0]);
  });

  test('refuse what is no gfn, naming it', () => {
    const vm = makeVm();
    expect(() => vm.spte(-1)).toThrow('gfn is -1');
    expect(() => vm.spte(0, 'shadow' as never)).toThrow('root is "shadow"');
    expect(() => vm.sptes([1] as never)).toThrow('gfns must be a Float64Array');
    for (const gfn of [-1, 0.5, Number.NaN, 2 ** 52]) {
      expect(() => vm.sptes(Float64Array.of(0, gfn))).toThrow(`gfns[1] is ${gfn}`);
    }
  });

  test('take more gfns than fit one call', () => {
    const vm = makeVm();
    vm.vcpus[0].access({ gpa: 0, kind: 'write', count: 2 });
    const codes = vm.sptes(Float64Array.from({ length: 300_000 }, (_, index) => index % 3));
    expect(codes.reduce((sum, code) => sum + ((code & 7) === 4 ? 1 : 0), 0)).toBe(200_000);
  });
});

test('stat() reads what stats() lists', () => {
  const vm = makeVm();
  vm.vcpus[0].access({ gpa: 0, kind: 'write', count: 20 });
  for (const [name, value] of Object.entries(vm.stats())) expect(vm.stat(name as never), name).toBe(value);
  expect(() => vm.stat('pages' as never)).toThrow('there is no such counter');
});

test('readTrace() hands over the records that trace() decodes, and forgets them', () => {
  const vm = makeVm(64);
  vm.readTrace(() => undefined);
  vm.vcpus[0].access({ gpa: 0, kind: 'write' });
  const copies = vm.readTrace((words, records) => [words.length, records, words[0] & 255]);
  expect(copies[0]).toBe(copies[1] * 4);
  expect(copies[1]).toBeGreaterThan(0);
  expect(vm.readTrace((_words, records) => records)).toBe(0);
  expect(vm.trace()).toEqual([]);
});
