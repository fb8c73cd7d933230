// Unpacks the headless browser of the npm package @sparticuz/chromium.
//
//   node unpack_chromium.js PACKAGE FOLDER
//
// What lies in FOLDER afterwards needs no other library of the system:
// chromium, the libraries that it is linked to (lib), and fonts.

const { execFileSync } = require("node:child_process");
const fs = require("node:fs");
const path = require("node:path");
const { brotliDecompressSync } = require("node:zlib");

const [from, to] = process.argv.slice(2);
const read = (name) => brotliDecompressSync(fs.readFileSync(path.join(from, "bin", name)));

fs.mkdirSync(to, { recursive: true });
for (const name of ["al2023.tar.br", "fonts.tar.br"]) {
  execFileSync("tar", ["xf", "-", "--no-same-owner", "-C", to], { input: read(name) });
}
fs.writeFileSync(path.join(to, "fonts.conf"), `<?xml version="1.0"?>
<fontconfig><dir>${path.resolve(to, "fonts")}</dir><cachedir>${path.resolve(to, "cache")}</cachedir></fontconfig>
`);
fs.writeFileSync(path.join(to, "chromium"), read("chromium.br"), { mode: 0o755 });
