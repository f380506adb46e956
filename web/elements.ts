/// <reference lib="dom" />
/**
 * The elements of the page.
 *
 * @module
 */

/** A new element, with text if any. Text is never taken for HTML. */
export function element<Name extends keyof HTMLElementTagNameMap>(
  name: Name,
  text = "",
): HTMLElementTagNameMap[Name] {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

/** The element with an id, which is there. */
export function byId<Type extends HTMLElement = HTMLElement>(id: string): Type {
  return document.getElementById(id) as Type;
}
