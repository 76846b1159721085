// What docs/fidelity.md lists as out of scope is refused, as its table says.

import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { type CreateVmOptions, createVmSync, type Vm } from '../../src/index.ts';

const PAGE = 4096;
const debug = process.env.EPTSIM_BUILD === 'debug';
const make = (options: Partial<CreateVmOptions> = {}) => createVmSync({ memory: 16 * PAGE, debug, ...options });
const bind = (vm: Vm, fd: number) =>
  vm.setUserMemoryRegion2({
    slot: 0,
    flags: 4,
    guestPhysAddr: 0,
    memorySize: PAGE,
    userspaceAddr: 0,
    guestMemfd: fd,
  });
const slot = (vm: Vm) =>
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: PAGE, userspaceAddr: 0x7f0000000000 });
const DIRTY_LOG_RING = 192;

test.each<[string, RegExp, () => unknown]>([
  [
    "another VM's guest_memfd",
    /EINVAL/,
    () => bind(make({ type: 'sw-protected' }), make({ type: 'sw-protected' }).createGuestMemfd({ size: PAGE }).fd),
  ],
  ['the dirty ring', /EINVAL/, () => make().enableCap({ cap: DIRTY_LOG_RING, args: [PAGE] })],
  ['flags of guest_memfd', /EINVAL/, () => make({ type: 'snp' }).createGuestMemfd({ size: PAGE, flags: 1 })],
  [
    'attributes other than PRIVATE',
    /EINVAL/,
    () => make({ type: 'tdx' }).setMemoryAttributes({ address: 0, size: PAGE, attributes: 1 }),
  ],
  ['PRIVATE on a default VM', /EINVAL/, () => make().setMemoryAttributes({ address: 0, size: PAGE, attributes: 8 })],
  ['SEV', /type is "sev": it must be one of/, () => make({ type: 'sev' as never })],
  ['other kernels', /kernel is "linux-6.18": it must be one of/, () => make({ kernel: 'linux-6.18' as never })],
  [
    'set_spte under linux-6.16',
    /EOPNOTSUPP/,
    () => {
      const vm = make({ kernel: 'linux-6.16' });
      slot(vm);
      vm.setSpteGfn({ slot: 0, start: 0, end: 1, arg: { pte: { writable: false } } });
    },
  ],
  ['a snapshot of another size', /its VM had a memory of/, () => make().restore(make({ memory: 2 ** 40 }).snapshot())],
  [
    'a snapshot of another type of VM',
    /cannot be restored: /,
    () => make({ type: 'sw-protected' }).restore(make({ type: 'snp' }).snapshot()),
  ],
])('%s is refused', (_, message, call) => {
  expect(call).toThrow(message);
});

test('the limits of the table are those of the layout', () => {
  const layout = readFileSync('assembly/layout.ts', 'utf8');
  const constant = (name: string) => Number(new RegExp(`${name}: u32 = (\\d+);`).exec(layout)?.[1]);
  const limits = readFileSync('docs/fidelity.md', 'utf8').split('\n## Limits\n')[1];
  const row = (what: string) =>
    Number(new RegExp(`^\\| ${what}[^|]*\\| ([\\d,]+)`, 'm').exec(limits)?.[1].replaceAll(',', ''));
  expect(row('memslots')).toBe(constant('USER_MEM_SLOTS'));
  expect(row('vCPUs')).toBe(constant('VCPUS_MAX'));
  expect(row('roots alive')).toBe(constant('ROOTS_MAX'));
  // The last record is for faults that are carried through at once.
  expect(row('faults begun')).toBe(constant('FAULTS_MAX') - 1);
  expect(row('guest_memfd files')).toBe(constant('GMEMS_MAX'));
  expect(row('MMIO and FROZEN')).toBe((constant('SIDE_CAPACITY') / 4) * 3);
});
