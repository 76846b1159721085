// The records of faults: each holds one between its phases, the last one what is carried through at once.
// Mirrors: struct kvm_page_fault, arch/x86/kvm/mmu/mmu_internal.h

import { ctl } from './control';
import { FAULT_BYTES, FAULTS_BASE, FAULTS_MAX } from './layout';

// Fault, 128 bytes. stage: 0 free, 1 begun, 2 frozen (mirror root), 3 decided before installing (result).
@unmanaged
export class Fault {
  stage: u32;
  vcpu: u32;
  access: u32;
  isPrivate: u32;
  prefetch: u32;
  slotAs: u32;
  slotId: u32;
  hasSlot: u32;
  gfn: u64;
  seq: u64;
  hostLevel: u32;
  hostWritable: u32;
  runPages: u64;
  result: i32;
  error: i32;
  rsvd: u32;
  rootSequence: u32;
  newFlags: u32;
  limitPages: u32;
  /** Level of the entry of a mirror root that is frozen. */
  goal: u32;
  /** The fault came from an ACCEPT of a page of this level; 0: it did not. */
  acceptLevel: u32;
  pad1: u64;
  pad2: u64;
  pad3: u64;
  pad4: u64;
}
if (offsetof<Fault>() != 128) ERROR('Fault is no longer 128 bytes: redraw it');

export function faultAt(index: u32): Fault {
  return changetype<Fault>(FAULTS_BASE + <usize>index * FAULT_BYTES);
}
/** Whether fault `index` is between its phases. */
export function faultIsBegun(index: u32): bool {
  return faultAt(index).stage != 0;
}
/** Whether a fault of vCPU `index` is under way, or between its phases: it is outside the guest. */
export function vcpuFaults(index: u32): bool {
  const scratch = faultAt(FAULTS_MAX - 1);
  if (scratch.stage != 0 && scratch.vcpu == index) return true;
  for (let id: u32 = 0; id < ctl.faultHighWater; id++) {
    if (faultIsBegun(id) && faultAt(id).vcpu == index) return true;
  }
  return false;
}
/** Space for a fault that is carried through at once: the last record of the table. */
export function scratchFault(): Fault {
  const fault = faultAt(FAULTS_MAX - 1);
  const ptr = changetype<usize>(fault);
  for (let at: usize = 0; at < FAULT_BYTES; at += 8) store<u64>(ptr + at, 0);
  return fault;
}
