// What errors say: the call, its values, the errno, and why.

import { describe, expect, test } from 'vitest';
import { boolean, check, errnoName, errorOf, halvesOf, integer, object, oneOf } from '../../src/errors.ts';
import { createVmSync, EngineFault, KvmError } from '../../src/index.ts';
import { isDebugBuild, PAGE } from '../support/make-vm.ts';

describe('errorOf()', () => {
  test.each([
    [-22, 'EINVAL', 'KVM refuses these arguments'],
    [-17, 'EEXIST', 'the gfns overlap another memslot'],
    [-2, 'ENOENT', 'there is no such thing'],
    [-9, 'EBADF', 'the descriptor is not open'],
    [-14, 'EFAULT', 'nothing backs that address'],
    [-5, 'EIO', 'the VM is dead'],
    [-12, 'ENOMEM', 'out of memory'],
    [-95, 'EOPNOTSUPP', 'not supported by this file or kernel'],
    [-133, 'EHWPOISON', 'the page is poisoned'],
    [-27, 'EFBIG', 'beyond the largest file'],
    [-5000, 'ENOMEM', 'the VM would outgrow its memory'],
    [-5002, 'EBUSY', 'another operation of this VM is paused'],
    [-5003, 'EBADF', 'the VM was destroyed'],
    [-5004, 'EINVAL', 'no such vCPU, fault or root'],
  ])('status %i is %s', (status, code, why) => {
    const error = errorOf(status, 'punchHole', { offset: 4096 });
    expect(error).toBeInstanceOf(KvmError);
    expect(error).toMatchObject({ name: 'KvmError', code, call: 'punchHole' });
    expect(error.message).toMatch(new RegExp(`^punchHole\\(offset 0x1000\\): ${code}: ${why}`));
  });

  test.each([
    ['initMemRegion', -17, 'EEXIST: a page was added before'],
    ['initMemRegion', -22, 'EINVAL: KVM refuses these arguments'],
    ['accept', -16, 'EBUSY: the module was busy at each try'],
    ['madvise', -12, 'ENOMEM: a part of the range is not mapped'],
    ['madvise', -5000, 'ENOMEM: the VM would outgrow its memory'],
  ])('%s says what it means by status %i', (call, status, why) => {
    expect(errorOf(status, call, {}).message).toContain(`${call}(): ${why}`);
  });

  test('an errno without a name shows its number', () => {
    expect(errnoName(22)).toBe('EINVAL');
    expect(errnoName(99)).toBe('errno 99');
    expect(errorOf(-99, 'run', {}).message).toBe('run(): errno 99: refused');
  });

  test('values are shown with their names, addresses in hex, what is undefined not at all', () => {
    const values = { slot: 3, address: 0x1234_5000, size: 2n ** 40n, kind: 'read', fd: undefined, on: true };
    expect(errorOf(-22, 'call', values).message).toMatch(
      /^call\(slot 3, address 0x12345000, size 0x10000000000, kind "read", on true\): EINVAL/,
    );
  });
});

test('check() lets results through', () => {
  expect(check(0, 'run', {})).toBe(0);
  expect(check(7, 'run', {})).toBe(7);
  expect(() => check(-22, 'run', {})).toThrow(KvmError);
});

describe('halvesOf()', () => {
  test.each([
    [0, [0, 0]],
    [1, [1, 0]],
    [2 ** 32 - 1, [0xffffffff, 0]],
    [2 ** 32, [0, 1]],
    [Number.MAX_SAFE_INTEGER, [0xffffffff, 0x1fffff]],
    [2 ** 63, [0, 0x80000000]],
    [0n, [0, 0]],
    [2n ** 64n - 1n, [0xffffffff, 0xffffffff]],
    [0x0123_4567_89ab_cdefn, [0x89abcdef, 0x01234567]],
  ])('%s', (value, halves) => {
    expect(halvesOf(value, 'size')).toEqual(halves);
  });

  test.each([
    ['1', TypeError],
    [undefined, TypeError],
    [true, TypeError],
    [Number.NaN, RangeError],
    [Number.POSITIVE_INFINITY, RangeError],
    [1.5, RangeError],
    [-1, RangeError],
    [-1n, RangeError],
    [2n ** 64n, RangeError],
    [2 ** 64, RangeError],
  ])('refuses %s', (value, type) => {
    expect(() => halvesOf(value, 'size')).toThrow(type);
    expect(() => halvesOf(value, 'size')).toThrow(
      new RegExp(`^size is ${value}`.replace('18446744073709552000', '\\d+')),
    );
  });
});

test('integer(), boolean(), object() and oneOf() name argument, value and limit', () => {
  expect(integer(5, 'vcpus', 1, 8)).toBe(5);
  expect(() => integer(9, 'vcpus', 1, 8)).toThrow('vcpus is 9: it must be within 1 and 8');
  expect(() => integer('5', 'vcpus', 1, 8)).toThrow(TypeError);
  expect(boolean(false, 'on')).toBe(false);
  expect(() => boolean(0, 'on')).toThrow('on is 0: it must be a boolean');
  expect(() => object(null, 'args')).toThrow('args is null: it must be an object');
  expect(oneOf('b', 'kind', ['a', 'b'])).toBe('b');
  expect(() => oneOf('c', 'kind', ['a', 'b'])).toThrow('kind is "c": it must be one of a, b');
  expect(() => oneOf(3, 'kind', ['a', 'b'])).toThrow(TypeError);
});

test('an engine that fails ends its VM with EngineFault', () => {
  const vm = createVmSync({ memory: 64 * PAGE, debug: isDebugBuild });
  const before = vm.snapshot();
  // A call past the door: the engine traps on an address outside its memory.
  let fault: unknown;
  try {
    vm.operate('abiDirtyRuns', [0x3c0_0000, 0], 0, (status) => status);
  } catch (error) {
    fault = error;
  }
  expect(fault).toBeInstanceOf(EngineFault);
  expect((fault as Error).message).toMatch(/^the engine failed: .*; this VM can no longer be used$/);
  expect(() => vm.destroy()).toThrow(fault as Error);
  expect(() => vm.snapshot()).toThrow(fault as Error);
  vm.restore(before);
  vm.destroy();
});
