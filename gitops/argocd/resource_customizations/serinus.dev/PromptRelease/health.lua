-- Healthy: the revision that the spec names serves. Progressing: on the way there. Suspended: a person
-- or an incident holds it. Degraded: it failed or can not be done, and stays so until the spec changes.
local status = obj.status or {}
local ready, reconciling
for _, condition in ipairs(status.conditions or {}) do
  if condition.type == "Ready" then
    ready = condition
  elseif condition.type == "Reconciling" then
    reconciling = condition.status == "True"
  end
end
if ready == nil or (ready.observedGeneration or 0) < (obj.metadata.generation or 0) then
  return {
    status = "Progressing",
    message = "the operator has not looked at this generation of the release: is an operator running?",
  }
end

local message = ready.reason .. ": " .. ready.message
local canary = status.canary
if canary ~= nil then
  local place = status.step or ""
  if place ~= "" and place ~= "bake" then
    place = "step " .. place
  end
  message = canary.prompt .. " on " .. canary.backend .. ", " .. place .. " at " .. canary.weight .. " %: " .. message
  if (status.metrics or "") ~= "" then
    message = message .. " [" .. status.metrics .. "]"
  end
end

-- Held for a failure is no pause: users get what failed, or nothing.
local failures = { MetricFailed = true, VariantNotBuilt = true }
local health = "Progressing"
if ready.status == "True" then
  health = "Healthy"
elseif ready.reason == "Suspended" or status.phase == "AwaitingApproval" then
  health = "Suspended"
elseif status.phase == "Held" then
  health = failures[ready.reason] and "Degraded" or "Suspended"
elseif ready.status == "False" and not reconciling then
  health = "Degraded"
end
return { status = health, message = message }
