// Descriptors are numbered for the whole process; what is bound to them stays in each VM.

import { afterEach, describe, expect, test } from 'vitest';
import { adoptFd, fdKindFor, takeFd } from '../../src/fds.ts';
import { closeFd, createVmSync, openFd, type Vm } from '../../src/index.ts';
import { isDebugBuild, PAGE, SLOT_HVA } from '../support/make-vm.ts';

const owner = {};
const other = {};
const opened: number[] = [];
afterEach(() => {
  for (const fd of opened.splice(0)) closeFd(fd);
});
const took = (fd: number) => {
  opened.push(fd);
  return fd;
};

describe('the table', () => {
  test('gives the lowest number that is free, from 3 on', () => {
    const first = took(takeFd(owner, undefined));
    const second = took(takeFd(owner, undefined));
    expect(first).toBe(3);
    expect(second).toBe(4);
    closeFd(first);
    expect(takeFd(owner, undefined)).toBe(first);
  });

  test('gives a wanted number unless it is open', () => {
    expect(took(takeFd(owner, 777))).toBe(777);
    expect(() => takeFd(owner, 777)).toThrow(/^fd is 777: that descriptor is open already/);
    expect(() => openFd(777, 'other')).toThrow(/^fd is 777: that descriptor is open already/);
  });

  test.each([
    ['not open', () => {}, 0],
    ['another kind of file', () => openFd(900, 'other'), 1],
    ['a guest_memfd of elsewhere', () => openFd(900, 'guest_memfd'), 1],
    ["another VM's", () => takeFd(other, 900), 1],
    ["the VM's own", () => takeFd(owner, 900), 2],
  ] as const)('knows what is %s', (_, open, kind) => {
    open();
    took(900);
    expect(fdKindFor(owner, 900)).toBe(kind);
  });

  test('closing what is not open is no error', () => {
    closeFd(901);
    closeFd(901);
  });

  test('a restored VM takes its numbers over', () => {
    takeFd(other, took(902));
    adoptFd(owner, 902);
    expect(fdKindFor(owner, 902)).toBe(2);
    expect(fdKindFor(other, 902)).toBe(1);
  });
});

describe('guest_memfd numbers', () => {
  const newVm = (): Vm => createVmSync({ type: 'sw-protected', memory: 2 ** 30, debug: isDebugBuild });

  test('are unique over VMs, and free again after close', () => {
    const [one, two] = [newVm(), newVm()];
    const files = [one, two, one].map((vm) => vm.createGuestMemfd({ size: PAGE }));
    expect(new Set(files.map(({ fd }) => fd)).size).toBe(3);
    expect(one.guestMemfds.map(({ fd }) => fd)).toEqual([files[0].fd, files[2].fd]);
    files[1].close();
    expect(two.guestMemfds).toEqual([]);
    expect(two.createGuestMemfd({ size: PAGE }).fd).toBe(files[1].fd);
    for (const vm of [one, two]) for (const file of vm.guestMemfds) file.close();
  });

  test('of a refused createGuestMemfd() are free again', () => {
    const vm = newVm();
    expect(() => vm.createGuestMemfd({ size: 5, fd: 950 })).toThrow(/EINVAL/);
    expect(vm.createGuestMemfd({ size: PAGE, fd: 950 }).fd).toBe(950);
    vm.guestMemfds[0].close();
  });

  test('bind only in the VM that they belong to', () => {
    const [one, two] = [newVm(), newVm()];
    const { fd } = one.createGuestMemfd({ size: 16 * PAGE });
    const slot = { slot: 0, flags: 4, guestPhysAddr: 0, memorySize: 16 * PAGE, userspaceAddr: SLOT_HVA };
    expect(() => two.setUserMemoryRegion2({ ...slot, guestMemfd: fd })).toThrow(/EINVAL/);
    one.setUserMemoryRegion2({ ...slot, guestMemfd: fd });
    for (const file of one.guestMemfds) file.close();
  });
});
