// Passkeys: the browser makes one or signs with one, and what it says is sent with the form around the button.
const bytes = (text) => Uint8Array.from(atob(text.replace(/-/g, "+").replace(/_/g, "/")), (char) => char.charCodeAt(0));
const text = (buffer) => btoa(String.fromCharCode(...new Uint8Array(buffer))).replace(/\+/g, "-").replace(/\//g, "_").replace(/=/g, "");
const known = (list) => list?.map((one) => ({ ...one, id: bytes(one.id) }));

function read(options, making) {
  const parse = making ? "parseCreationOptionsFromJSON" : "parseRequestOptionsFromJSON";
  if (PublicKeyCredential[parse]) return PublicKeyCredential[parse](options);
  const { challenge, user, allowCredentials, excludeCredentials } = options;
  return {
    ...options,
    challenge: bytes(challenge),
    ...(user && { user: { ...user, id: bytes(user.id) } }),
    allowCredentials: known(allowCredentials),
    excludeCredentials: known(excludeCredentials),
  };
}

function write(credential) {
  if (credential.toJSON) return credential.toJSON();
  const { id, type, response } = credential;
  const told = { id, rawId: id, type, clientExtensionResults: {}, response: { transports: response.getTransports?.() } };
  for (const name of ["clientDataJSON", "attestationObject", "authenticatorData", "signature", "userHandle"])
    if (response[name]) told.response[name] = text(response[name]);
  return told;
}

let waiting;
async function ask(form, mediation) {
  const making = form.dataset.passkey === "make";
  waiting?.abort();
  waiting = new AbortController();
  const wish = { publicKey: read(JSON.parse(form.dataset.options), making), signal: waiting.signal, ...(mediation && { mediation }) };
  const credential = await (making ? navigator.credentials.create(wish) : navigator.credentials.get(wish));
  form.elements.answer.value = JSON.stringify(write(credential));
  form.submit();
}

for (const form of window.PublicKeyCredential ? document.querySelectorAll("form[data-passkey]") : []) {
  const told = form.querySelector("[role=alert]");
  form.hidden = false;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    told.textContent = "";
    try {
      await ask(form);
    } catch (error) {
      told.textContent = error.name === "InvalidStateError" ? "This device has a passkey for this account already." : "No passkey was used. Try again.";
    }
  });
  if (form.dataset.passkey === "offer" && (await PublicKeyCredential.isConditionalMediationAvailable?.())) ask(form, "conditional").catch(() => {});
}
