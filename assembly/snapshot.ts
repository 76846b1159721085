// What a snapshot copies: the used prefix of each region, in order.

import { ctl, VM_SNP } from './control';
import {
  BITMAP_BASE,
  BITMAP_BYTES,
  CONTROL_BASE,
  CONTROL_BYTES,
  FAULT_BYTES,
  FAULTS_BASE,
  FAULTS_MAX,
  GMEM_BASE,
  GMEM_BYTES,
  LOSS_BYTES,
  LOSSES_BASE,
  MEMSLOT_BYTES,
  MEMSLOTS_BASE,
  PAUSE_BASE,
  PAUSE_BYTES,
  PSC_BASE,
  PSC_BYTES,
  RING_BASE,
  RMP_ORIGINS_BASE,
  RMP_ORIGINS_BYTES,
  ROOT_BYTES,
  ROOTS_BASE,
  SIDE_BASE,
  SIDE_BYTES,
  SIDE_CAPACITY,
  SLOT_ORDER_BASE,
  TRACE_RECORD_BYTES,
  VCPU_BYTES,
  VCPUS_BASE,
  VMA_BYTES,
  VMAS_BASE,
} from './layout';

function region(start: usize, bytes: usize): i32 {
  ctl.result0 = <f64>start;
  ctl.result1 = <f64>bytes;
  return 1;
}

/** Start and bytes of the used part of region `index` in result0 and result1; returns 0 behind the last. */
export function snapshotRegion(index: u32): i32 {
  switch (index) {
    case 0:
      return region(CONTROL_BASE, CONTROL_BYTES);
    case 1:
      return region(PAUSE_BASE, ctl.paused != 0 ? PAUSE_BYTES : 0);
    case 2:
      return region(BITMAP_BASE, ctl.paused != 0 ? BITMAP_BYTES : 0);
    case 3:
      return region(MEMSLOTS_BASE, <usize>ctl.memslotHighWater * MEMSLOT_BYTES);
    case 4:
      return region(SLOT_ORDER_BASE, <usize>ctl.slotCount0 * 4);
    case 5:
      return region(SLOT_ORDER_BASE + 131072, <usize>ctl.slotCount0 * 4);
    case 6:
      return region(SLOT_ORDER_BASE + 262144, <usize>ctl.slotCount1 * 4);
    case 7:
      return region(SLOT_ORDER_BASE + 393216, <usize>ctl.slotCount1 * 4);
    case 8:
      return region(ROOTS_BASE, <usize>ctl.rootHighWater * ROOT_BYTES);
    case 9:
      return region(VCPUS_BASE, <usize>ctl.vcpuCount * VCPU_BYTES);
    case 10:
      return region(FAULTS_BASE, <usize>ctl.faultHighWater * FAULT_BYTES);
    case 11:
      // The record of a fault that is carried through at once, which a pause can interrupt.
      return region(FAULTS_BASE + <usize>(FAULTS_MAX - 1) * FAULT_BYTES, ctl.paused != 0 ? FAULT_BYTES : 0);
    case 12:
      return region(GMEM_BASE, <usize>ctl.gmemHighWater * GMEM_BYTES);
    case 13:
      return region(RMP_ORIGINS_BASE, ctl.vmType == VM_SNP ? <usize>ctl.gmemHighWater * RMP_ORIGINS_BYTES : 0);
    case 14:
      return region(PSC_BASE, <usize>ctl.pscHighWater * PSC_BYTES);
    case 15:
      return region(VMAS_BASE, <usize>ctl.vmaCount * VMA_BYTES);
    case 16:
      return region(SIDE_BASE, ctl.sideCount != 0 ? <usize>SIDE_CAPACITY * SIDE_BYTES : 0);
    case 17:
      return region(LOSSES_BASE, <usize>ctl.lossCount * LOSS_BYTES);
    case 18:
      return region(RING_BASE, <usize>ctl.traceCount * TRACE_RECORD_BYTES);
    case 19:
      return region(<usize>ctl.stackBase0, <usize>ctl.stackCount0 * 4);
    case 20:
      return region(<usize>ctl.stackBase1, <usize>ctl.stackCount1 * 4);
    case 21:
      return region(<usize>ctl.stackBase2, <usize>ctl.stackCount2 * 4);
    case 22:
      return region(<usize>ctl.arenaBase, (<usize>ctl.arenaNext) << 6);
    default:
      return 0;
  }
}
