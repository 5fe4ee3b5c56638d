-- Healthy is a backend that can be used. A backend that nobody answers at is Degraded, one whose pods
-- start is Progressing, and one that was scaled to zero is Suspended, because somebody asked for that.
local ready
for _, condition in ipairs((obj.status or {}).conditions or {}) do
  if condition.type == "Ready" then
    ready = condition
  end
end
if ready == nil or (ready.observedGeneration or 0) < (obj.metadata.generation or 0) then
  return {
    status = "Progressing",
    message = "the operator has not looked at this generation of the backend: is an operator running?",
  }
end
local status = "Degraded"
if ready.status == "True" then
  status = "Healthy"
elseif ready.status == "Unknown" then
  status = "Progressing"
elseif ready.reason == "ScaledToZero" then
  status = "Suspended"
end
return { status = status, message = ready.reason .. ": " .. ready.message }
