// `eptsim schema`: the JSON Schema of a scenario file, for editors that complete and check as one types.
//
// It is built from the tables that the checker reads, so it can't fall behind; what only a run can know (whether an
// expression holds, a counter's name) it leaves to the run.

import type { Command } from 'commander';
import { z } from 'zod';
import { type ScenarioField, scenarioFields } from '../index.ts';

export function registerSchema(program: Command): void {
  program
    .command('schema')
    .description('print the JSON Schema of a scenario file, for editors')
    .action(() => {
      process.stdout.write(`${JSON.stringify(scenarioSchema(), undefined, 2)}\n`);
    });
}

/** A number, a size or an expression; a condition; a word or an expression that gives one. */
const quantity = z.union([z.number(), z.string()]);
const condition = z.union([z.boolean(), z.string()]);

function fieldSchema(field: ScenarioField): z.ZodType {
  switch (field.kind) {
    case 'flag':
      return condition;
    case 'word':
      return z.union([z.enum(field.words as [string, ...string[]]), z.string()]);
    case 'text':
    case 'guestMemfd':
    case 'fault':
      return z.string();
    case 'list':
      return z.array(z.unknown());
    case 'record':
      return recordSchema(field.fields ?? {});
    case 'any':
      return z.unknown();
    default:
      return quantity;
  }
}

function recordSchema(fields: Readonly<Record<string, ScenarioField>>): z.ZodObject {
  const shape = Object.entries(fields).map(([name, field]) => {
    const schema = fieldSchema(field);
    return [name, field.optional ? schema.optional() : schema];
  });
  return z.strictObject(Object.fromEntries(shape) as Record<string, z.ZodType>);
}

/** The JSON Schema (draft 2020-12) of a scenario. */
export function scenarioSchema(): object {
  return z.toJSONSchema(scenarioType().meta({ title: 'An eptsim scenario' }));
}

/** What a scenario file may hold. */
export function scenarioType(): z.ZodType {
  const { vm, memory, methods } = scenarioFields();
  const expect = z.record(z.string(), quantity);
  const check = z.enum(['empty', 'off']);
  const step: z.ZodType = z.lazy(() =>
    z
      .strictObject({
        name: z.string().optional(),
        steps: z.array(step).optional(),
        if: condition.optional(),
        repeat: quantity.optional(),
        index: z.string().optional(),
        measure: z.boolean().optional(),
        as: z.string().optional(),
        returns: z.union([quantity, z.boolean()]).optional(),
        refused: z.string().optional(),
        expect: expect.optional(),
        ...Object.fromEntries(
          Object.entries(methods).map(([name, fields]) => [name, recordSchema(fields).nullable().optional()]),
        ),
      })
      .meta({ id: 'step', description: 'One method of the API with its fields, or a group of steps.' }),
  );
  const parameter = z.strictObject({
    default: z.union([quantity, z.boolean()]),
    description: z.string().optional(),
    min: quantity.optional(),
    max: quantity.optional(),
    multipleOf: quantity.optional(),
    oneOf: z.array(z.string()).optional(),
  });
  const vmSection = recordSchema(vm);
  return z.strictObject({
    name: z.string(),
    description: z.string().optional(),
    parameters: z.record(z.string(), z.union([quantity, parameter])).optional(),
    let: z.record(z.string(), quantity).optional(),
    require: z.array(z.strictObject({ that: z.string(), say: z.string() })).optional(),
    vm: vmSection,
    memory: z.array(recordSchema(memory)).optional(),
    check: check.optional(),
    steps: z.array(step),
    compare: z
      .array(
        z.strictObject({
          name: z.string(),
          vm: vmSection.optional(),
          set: z.record(z.string(), z.union([quantity, z.boolean()])).optional(),
          check: check.optional(),
          expect: expect.optional(),
        }),
      )
      .optional(),
  });
}
