-- Freezes the rollout: weights stay, harm is still watched. Leave spec.suspend out of git to use this.
obj.spec.suspend = true
return obj
