import type { BodySource } from '../core/stream.ts';

/** The body of a message that has none: it ends as soon as it is asked for. */
export const NO_BODY: BodySource = {
  length: 0,
  start: (consumer) => consumer.end([]),
  pause: () => undefined,
  resume: () => undefined,
  cancel: () => undefined,
};
