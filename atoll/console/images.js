/** Pictures from a file, the clipboard or a drop, in a form that vision models read. */

import { ApiError } from "/console/api.js";
import { dataUrl } from "/console/voice.js";

const LONGEST = 2048;
const MOST_BYTES = 4e6;
const DIRECT = ["image/png", "image/jpeg"];

export const pictures = (transfer) => [...(transfer?.files ?? [])].filter((file) => file.type.startsWith("image/"));

/** A PNG or JPEG data URL of at most 2048 pixels a side. Throws ApiError when the browser cannot read the file. */
export async function picture(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new ApiError(`${file.name || "The picture"} is not an image that this browser can read.`);
  }
  const scale = Math.min(1, LONGEST / Math.max(bitmap.width, bitmap.height));
  const name = file.name || "picture";
  if (scale === 1 && file.size <= MOST_BYTES && DIRECT.includes(file.type)) return { url: await dataUrl(file), name };
  const canvas = new OffscreenCanvas(Math.round(bitmap.width * scale), Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return { url: await dataUrl(await canvas.convertToBlob({ type: "image/jpeg", quality: 0.9 })), name };
}
