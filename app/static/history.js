/** What was made in this browser: {id, title, body, parent}, the newest first. The sounds themselves are the service's. */

const NAME = "clipsynth.history";
const MAX = 50;

export function read() {
  try {
    return JSON.parse(localStorage.getItem(NAME)) ?? [];
  } catch {
    return [];
  }
}

function write(entries) {
  for (entries = entries.slice(0, MAX); ; entries.pop()) {
    try {
      return localStorage.setItem(NAME, JSON.stringify(entries));
    } catch (error) {
      if (!entries.length) throw error; // images take room: the oldest go
    }
  }
}

export const add = (entry) => write([entry, ...read()]);
export const remove = (id) => write(read().filter((entry) => entry.id !== id));
