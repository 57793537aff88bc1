import { afterAll, onTestFinished } from 'vitest';

/** Anything with a lifetime. */
export interface Closable {
  close(): Promise<void> | void;
}

/**
 * For things that all tests of a file share: what is handed to the returned function is closed when the file is done, the last one first.
 * Call it once at the top of the file.
 */
export function closeAfterFile(): <T extends Closable>(resource: T) => T {
  const open: Closable[] = [];
  afterAll(async () => {
    for (const resource of open.reverse()) await resource.close();
  });
  return (resource) => {
    open.push(resource);
    return resource;
  };
}

/** Closes it when the running test is done. */
export function closeAfterTest<T extends Closable>(resource: T): T {
  onTestFinished(async () => {
    await resource.close();
  });
  return resource;
}
