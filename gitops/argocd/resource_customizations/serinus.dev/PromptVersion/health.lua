-- The operator checks the prompt once for each generation: valid is Healthy, anything else needs a person.
local ready
for _, condition in ipairs((obj.status or {}).conditions or {}) do
  if condition.type == "Ready" then
    ready = condition
  end
end
if ready == nil or (ready.observedGeneration or 0) < (obj.metadata.generation or 0) or ready.status == "Unknown" then
  return {
    status = "Progressing",
    message = "the operator has not checked this generation of the prompt: is an operator running?",
  }
end
local healthy = ready.status == "True"
return {
  status = healthy and "Healthy" or "Degraded",
  message = ready.reason .. ": " .. ready.message,
}
